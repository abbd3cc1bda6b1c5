"""Videos read a CPU second, with CRC, by reeltag and by others from the same shards on the same core.

The shards have YouTube-8M's dimensions. Ratios are to tf.data's fastest way. Before that, two workers against one
by the clock, and the peak of memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import measure
from measure import Passes, Peer
from random_videos import FRAMES, SCHEMA, generate
from reeltag.data.formats.example import _read_general
from reeltag.data.formats.tfrecord import ShardFile, write_shard
from reeltag.data.shards import read_examples

SHARDS = WORKERS = 2
TF_DATA = {"tf.data, one by one": 1, "tf.data, batches of 16": 16, "tf.data, batches of 64": 64}
REPEATS = 25  # of what workers read, so that it outlasts the start of a pass and the choice of a core
TFRECORD = "tfrecord (PyPI), no CRC"


def read_views(paths: list[Path]) -> None:
    for video in read_examples(paths, SCHEMA):
        _ = len(video.labels), [frames[-1, -1] for frames in video.features]


def read_copies(paths: list[Path]) -> None:
    for video in read_examples(paths, SCHEMA):
        _ = len(video.labels), video.frames()


def read_protobuf(paths: list[Path]) -> None:
    for path in paths:
        for record in ShardFile(path).records():
            _read_general(record.payload, SCHEMA)


def read_bytes(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def copy_bytes(records: list[bytes], buffer: np.ndarray) -> None:
    for record in records:
        buffer[: len(record)] = np.frombuffer(record, np.uint8)


def our_rows(paths: list[Path]) -> dict[str, Callable[[], Any]]:
    records = [record.payload for path in paths for record in ShardFile(path).records()]
    return {
        "reeltag": partial(read_views, paths),
        "reeltag, frames copied": partial(read_copies, paths),
        "protobuf loop": partial(read_protobuf, paths),
        "plain read, no CRC": partial(read_bytes, paths),
        "memcpy, no file": partial(copy_bytes, records, np.empty(max(map(len, records)), np.uint8)),
    }


def refuse_difference(paths: list[Path], name: str, theirs: Any) -> None:
    """Stop unless a peer sees the same ids, labels and frames."""
    ours = (
        [video.id, video.labels.tolist(), *(zlib.crc32(frames.tobytes()) for frames in video.features)]
        for video in read_examples(paths, SCHEMA)
    )
    for pair in zip_longest(ours, theirs):
        if pair[0] != pair[1]:
            raise SystemExit(f"reeltag and {name} read different videos: {pair}")


def measure_readers(paths: list[Path], videos: int, python: Path, rounds: int) -> tuple[Passes, list[str]]:
    """Passes of all readers, and the names of the peers."""
    arguments = list(map(str, paths))
    with (
        Peer.find(python, "peer_tf_reader.py", *arguments) as tensorflow,
        Peer.find(python, "peer_tfrecord.py", *arguments) as tfrecord,
    ):
        asked = {name: (tensorflow, batch) for name, batch in TF_DATA.items()} | {TFRECORD: (tfrecord, 1)}
        asked = {name: (peer, batch) for name, (peer, batch) in asked.items() if peer}
        for name, (peer, batch) in asked.items():
            refuse_difference(paths, name, peer.ask("check", batch))
        rows: dict[str, Callable[[], measure.Times]] = {
            name: partial(measure.timed, read, videos) for name, read in our_rows(paths).items()
        }
        for name, (peer, batch) in asked.items():
            rows[name] = partial(peer.timed, videos, "pass", batch)
        return measure.run_rounds(rows, rounds), [peer.name for peer in (tensorflow, tfrecord) if peer]


def cpu_seconds(paths: list[Path]) -> float:
    """Of reading, in the process that calls this."""
    return measure.timed(partial(read_views, paths))["cpu"]


def measure_workers(paths: list[Path], videos: int, rounds: int) -> Passes:
    """One process that reads all shards, and two that read half of them each; the slowest one's CPU time."""
    with ProcessPoolExecutor(WORKERS) as pool:

        def read(parts: list[list[Path]]) -> measure.Times:
            begin = time.perf_counter()
            cpu = max(pool.map(cpu_seconds, [part * REPEATS for part in parts]))
            wall = time.perf_counter() - begin
            return {"cpu": cpu / (videos * REPEATS), "wall": wall / (videos * REPEATS)}

        halves = [paths[worker::WORKERS] for worker in range(WORKERS)]
        return measure.run_rounds({"one worker": partial(read, [paths]), "two workers": partial(read, halves)}, rounds)


def peak_memory(path: Path) -> float | None:
    """Most megabytes that a process which reads one shard ever had; None where the system does not say."""
    program = (
        "import sys; from pathlib import Path; import reader; reader.read_views([Path(sys.argv[1])]);"
        "print(Path('/proc/self/status').read_text())"
    )
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", program, str(path)]
    status = subprocess.run(command, cwd=measure.HERE, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def main() -> None:
    parser = measure.options("Videos read a CPU second, by reeltag and by others.")
    parser.add_argument("--videos", type=int, default=300, help="a shard")
    options = parser.parse_args()
    videos = SHARDS * options.videos
    with tempfile.TemporaryDirectory() as folder:
        paths = generate(Path(folder), SHARDS, options.videos)
        quarter = Path(folder) / "quarter.tfrecord"
        write_shard(quarter, (record.payload for record in islice(ShardFile(paths[0]).records(), options.videos // 4)))
        memory = {options.videos // 4: peak_memory(quarter), options.videos: peak_memory(paths[0])}
        workers = measure_workers(paths, videos, options.rounds)
        measure.pin()
        passes, peers = measure_readers(paths, videos, options.peers, options.rounds)
    measured = [name for name in TF_DATA if name in passes]
    base = min(measured, key=lambda name: median(times["cpu"] for times in passes[name]), default=None)
    rows = measure.rates(passes, base)
    print(
        f"{videos} videos of {FRAMES} in {SHARDS} shards, {options.rounds} rounds; peers: {', '.join(peers) or 'none'}"
    )
    print("\nOn one core:\n")
    measure.print_table(dict(sorted(rows.items(), key=lambda item: -item[1]["per_cpu_second"]["median"])), base)
    by_workers = {per: measure.rates(workers, "one worker", per) for per in ("wall", "cpu")}
    print("On all cores, by the clock and by the slowest worker's CPU time, which counts no waiting for a busy core:\n")
    for table in by_workers.values():
        measure.print_table(table, "one worker")
    sizes = (f"{size:.1f} MB for a shard of {count} videos" for count, size in memory.items() if size)
    print("Peak of memory:", ", ".join(sizes) or "unknown on this system")
    content = {"videos": videos, "rounds": options.rounds, "peers": peers, "against": base, "rows": rows}
    measure.print_json(options.json, "reader", **content, workers=by_workers, peak_megabytes=memory)


if __name__ == "__main__":
    main()
