"""Videos read a CPU second, with CRC, by reeltag and by tf.data on the same shards and the same core.

The shards have YouTube-8M's dimensions. Readers take turns, so that a busy machine slows all of them,
and each times its own process. The ratios are to tf.data's fastest way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from reeltag.data.example import Video, _read_general, encode
from reeltag.data.schema import preset
from reeltag.data.shards import read_all
from reeltag.data.tfrecord import ShardFile, write_shard

SCHEMA = preset("yt8m-frame")
SHARDS = 2
PEER_ROWS = {"tf.data, one by one": 1, "tf.data, batches of 16": 16, "tf.data, batches of 64": 64}
HERE = Path(__file__).parent
Times = dict[str, float]


def generate(folder: Path, videos: int) -> list[Path]:
    """Shards of random videos, each different; equal calls give equal bytes."""
    paths = [folder / f"{number}.tfrecord" for number in range(SHARDS)]
    for number, path in enumerate(paths):
        write_shard(path, (encode(random_video(number, index), SCHEMA) for index in range(videos)))
    return paths


def random_video(*place: int) -> Video:
    rng = np.random.default_rng(place)
    frames = rng.integers(0, 256, (SCHEMA.max_frames, SCHEMA.width), np.uint8)
    labels = np.sort(rng.choice(SCHEMA.classes, rng.integers(1, 6), replace=False))
    return Video("-".join(map(str, place)), labels, tuple(np.split(frames, np.cumsum(SCHEMA.widths)[:-1], axis=1)))


def read_views(paths: list[Path]) -> None:
    for video in read_all(paths, SCHEMA):
        _ = len(video.labels), [frames[-1, -1] for frames in video.features]


def read_copies(paths: list[Path]) -> None:
    for video in read_all(paths, SCHEMA):
        _ = len(video.labels), video.frames()


def read_protobuf(paths: list[Path]) -> None:
    for path in paths:
        shard = ShardFile(path)
        for number, offset in enumerate(shard.offsets().tolist()):
            _read_general(shard.record(offset, number), SCHEMA)


def read_bytes(paths: list[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


OUR_ROWS = {
    "reeltag": read_views,
    "reeltag, frames copied": read_copies,
    "protobuf loop": read_protobuf,
    "plain read, no CRC": read_bytes,
}


def timed(read: Callable[[list[Path]], None], paths: list[Path]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    read(paths)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


class Peer:
    """tf.data in a process of its own, which lives until this one ends."""

    def __init__(self, python: Path, paths: list[Path]) -> None:
        command = [str(python), str(HERE / "peer_tf_reader.py"), *map(str, paths)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._answer()

    def ask(self, command: str, batch: int) -> Any:
        """The answer to one line."""
        self.process.stdin.write(f"{command} {batch}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"the peer ended with status {self.process.wait()}; its message stands above")
        return json.loads(line)


def refuse_difference(paths: list[Path], peer: Peer) -> None:
    """Stop unless all see the same ids, labels and frames."""
    ours = [
        [video.id, video.labels.tolist(), *(zlib.crc32(frames.tobytes()) for frames in video.features)]
        for video in read_all(paths, SCHEMA)
    ]
    for name, batch in PEER_ROWS.items():
        for pair in zip_longest(ours, peer.ask("check", batch)):
            if pair[0] != pair[1]:
                raise SystemExit(f"reeltag and {name} read different videos: {pair}")


def run_rounds(paths: list[Path], peer: Peer | None, rounds: int) -> dict[str, list[Times]]:
    """Times of every reader's passes, ours and the peer's in turn; the first round only warms up."""
    ours = [(name, partial(timed, read, paths)) for name, read in OUR_ROWS.items()]
    theirs = [(name, partial(peer.ask, "pass", batch)) for name, batch in PEER_ROWS.items()] if peer else []
    readers = [reader for pair in zip_longest(ours, theirs) for reader in pair if reader]
    passes = [{name: read() for name, read in readers} for _ in range(rounds + 1)][1:]
    return {name: [times[name] for times in passes] for name, _ in readers}


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def summarize(passes: dict[str, list[Times]], videos: int) -> tuple[dict[str, Any], str | None]:
    """Videos a second and the ratio to tf.data's fastest way, round by round; and which way that is."""
    rates = {name: [videos / seconds["cpu"] for seconds in times] for name, times in passes.items()}
    best = max(PEER_ROWS.keys() & rates, key=lambda name: median(rates[name]), default=None)
    rows: dict[str, Any] = {}
    for name, times in passes.items():
        wall = spread(videos / seconds["wall"] for seconds in times)
        rows[name] = {"videos_per_cpu_second": spread(rates[name]), "videos_per_second": wall}
        if best:
            rows[name]["ratio"] = spread(a / b for a, b in zip(rates[name], rates[best], strict=True))
    return rows, best


def print_table(rows: dict[str, Any], best: str | None) -> None:
    columns = {"videos_per_cpu_second": ",.0f"} | ({"ratio": ".2f"} if best else {})
    print(f"{'':24}{'videos a CPU second':>27}" + (f"{'ratio to ' + best:>34}" if best else ""))
    print(f"{'':24}" + f"{'median':>9}{'min':>9}{'max':>9}" * len(columns))
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["videos_per_cpu_second"]["median"]):
        cells = [format(value, style) for column, style in columns.items() for value in row[column].values()]
        print(f"{name:24}" + "".join(f"{cell:>9}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description="Videos read a CPU second, by reeltag and by tf.data.")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".bench-venv/bin/python", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--videos", type=int, default=500, help="a shard")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the peer inherits it
    videos = SHARDS * options.videos
    with tempfile.TemporaryDirectory() as folder:
        paths = generate(Path(folder), options.videos)
        peer = Peer(options.peers, paths) if options.peers.exists() else None
        if peer:
            refuse_difference(paths, peer)
        rows, best = summarize(run_rounds(paths, peer, options.rounds), videos)
    frames = f"{SCHEMA.max_frames} × {SCHEMA.width} bytes"
    print(f"{videos} videos of {frames} in {SHARDS} shards, {options.rounds} rounds on one core")
    print(f"Peer: {peer.name}" if peer else f"No peer: there is no {options.peers} (make bench-env)")
    print_table(rows, best)
    if options.json:
        head = {"bench": "reader", "videos": videos, "rounds": options.rounds, "peer": peer and peer.name}
        print(json.dumps(head | {"against": best, "rows": rows}))


if __name__ == "__main__":
    main()
