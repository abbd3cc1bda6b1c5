"""Latency of `reeltag serve`: one client, 16 at once, and what it answers to malformed requests.

The service is a process of its own, with random weights or with a given file; the clients are raw sockets that are
kept open, in this process. Each request is one video of full length as a TFRecord. Ratios are to one client's median in
the same round.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from measure import options, print_json, print_table, spread
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.core.text import counted
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import frame_record
from reeltag.data.loader import collate
from reeltag.data.schema import Schema, preset_schema
from reeltag.inference.ensemble import predict_batches
from reeltag.inference.predictor import MODES, AnyMode, Predictor, load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.serve.models import TYPICAL_BATCH

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "audioset": ("audioset", {"family": "netvlad", "clusters": 48, "hidden": 512}),
    "yt8m": ("yt8m-frame", {"family": "netvlad", "clusters": 64, "hidden": 512}),
}
ALONE, CLIENTS = 200, 16
BASE = "one client, median"
REACH = 4.0  # p95 of 16 clients as a ratio to one client's median
Asked = tuple[int, float]  # status and seconds


class Connection(asyncio.Protocol):
    """Sends a request and waits for its answer; no more of HTTP than that."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if found and len(body) >= int(re.search(rb"content-length: (\d+)", head)[1]):
            status = int(head.split(b" ", 2)[1])
            self.received = b""
            self.answered.set_result(status)

    async def ask(self, request: bytes) -> Asked:
        self.answered = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        self.transport.write(request)
        return await self.answered, time.perf_counter() - begin


def ask_all(port: int, requests: Sequence[bytes], clients: int) -> tuple[list[Asked], float]:
    """Answers to all requests, from so many clients that each send their next when they have an answer; and seconds."""
    queue, answers = iter(requests), []

    async def client() -> None:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        for request in queue:
            answers.append(await connection.ask(request))
        connection.transport.close()

    async def together() -> float:
        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - begin

    return answers, asyncio.run(together())


def http(body: bytes, kind: str = "application/x-tfrecord", path: str = "/predict", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def random_video(schema: Schema) -> Video:
    frames = np.random.default_rng(0).integers(0, 256, (schema.max_frames, schema.width), np.uint8)
    return Video("video", None, tuple(np.split(frames, np.cumsum(schema.widths)[:-1], axis=1)))


def malformed(record: bytes, width: int, count: int) -> Iterator[bytes]:
    """Requests with something wrong in each."""
    rng = random.Random(0)
    row = [0] * width
    good = {"frames": [row]}

    def flipped() -> bytes:
        body = bytearray(record)
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        return http(bytes(body))

    def as_json(**change: object) -> bytes:
        return http(json.dumps(good | change).encode(), "application/json")

    kinds: list[Callable[[], bytes]] = [
        flipped,
        lambda: http(record[: rng.randrange(len(record))]),
        lambda: http(rng.randbytes(rng.randrange(1, 2000))),
        lambda: http(rng.randbytes(rng.randrange(1, 2000)), "application/json"),
        lambda: http(b"[" * 20_000, "application/json"),
        lambda: http(b'{"frames": [[' + b"9" * 5000 + b"]]}", "application/json"),
        lambda: http(record, "text/plain"),
        lambda: http(record, path=f"/predict?top={rng.choice(['0', '-1', '1e3', 'x', '99999999999'])}"),
        lambda: http(b"", path=f"/{rng.randrange(1000)}", method=rng.choice(["GET", "POST", "PUT"])),
        lambda: as_json(frames=[row[:-1]]),
        lambda: as_json(frames=[row, [*row, 1]]),
        lambda: as_json(frames=[[rng.choice([256, -1, 0.5, 1e300, float("nan"), None, "1", True])] * width]),
        lambda: as_json(frames=[]),
        lambda: as_json(top=rng.choice([0, -1, 1.5, "2", None, 10**30])),
        lambda: as_json(timeline=7),
    ]
    return (rng.choice(kinds)() for _ in range(count))


@contextmanager
def serving(path: Path, mode: str, workers: int, log: Path) -> Iterator[tuple[int, int]]:
    """Process and port of the service."""
    command = [sys.executable, "-c", "import sys; from reeltag.cli.main import main; sys.exit(main())"]
    with (
        log.open("wb") as lines,
        subprocess.Popen(
            [*command, "serve", str(path), "--port", "0", "--mode", mode, "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
        ) as process,
    ):
        try:
            yield process.pid, int(process.stdout.readline().split(":")[3].split()[0])
        finally:
            process.terminate()
            if code := process.wait():
                raise SystemExit(f"the service ended with {code}")


def memory(process: int) -> float:
    """Memory of a process and its children, MB; what several of them share counts once."""
    threads = Path(f"/proc/{process}/task").glob("*/children")  # each thread has those that it started
    children = [child for thread in threads for child in thread.read_text().split()]
    own = int(re.search(r"Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text())[1]) * 1024 / 1e6
    return own + sum(memory(int(child)) for child in children)


def model_alone(model: Predictor, video: Video, size: int) -> float:
    """Median seconds of the model alone, on a batch."""
    batch = collate([video] * size, [video.length] * size, model.schema)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        list(predict_batches(model.model, [batch]))
        times.append(time.perf_counter() - begin)
    return median(times)


def one_round(port: int, request: bytes, count: int, model: Predictor, video: Video) -> dict[str, float]:
    """Milliseconds of every row, and requests a second."""
    found = {}
    health = http(b"", path="/healthz", method="GET")
    for title, sent, requests in (("one client", request, ALONE), (f"{CLIENTS} clients", request, count)):
        clients = 1 if requests == ALONE else CLIENTS
        answers, wall = ask_all(port, [sent] * requests, clients)
        if wrong := [status for status, _ in answers if status != 200]:
            raise SystemExit(f"{len(wrong)} of {len(answers)} answers have status {wrong[0]}")
        times = [seconds for _, seconds in answers]
        found |= {f"{title}, median": median(times), f"{title}, p95": quantiles(times, n=20)[-1]}
        rate = len(answers) / wall
    for size in (1, CLIENTS):
        found[f"the model alone, batch of {size}"] = model_alone(model, video, size)
    for clients in (1, CLIENTS):
        answers, _ = ask_all(port, [health] * ALONE, clients)
        found[f"/healthz, {clients} at once, median"] = median(seconds for _, seconds in answers)
    return {name: 1000 * seconds for name, seconds in found.items()} | {"rate": rate}


def write_model(name: str, folder: Path) -> Path:
    """A file with random weights."""
    schema_name, table = MODELS[name]
    schema, config = preset_schema(schema_name), parse_config(table)
    state = build_tagger(config, schema.widths, schema.classes, 0).state_dict()
    path = folder / f"{name}.reeltag"
    save_artifact(path, Artifact(schema, None, (Member(name, config, 1.0, state),), {}))
    return path


def measure(path: Path, mode: AnyMode, workers: int, *, rounds: int, count: int, bad: int, log: Path) -> dict[str, Any]:
    """Time one model, see to its memory and send it malformed requests."""
    model = load(path, mode, batch_size=TYPICAL_BATCH)  # as the service computes
    schema, video = model.schema, random_video(model.schema)
    record = frame_record(encode(video, schema))
    with serving(path, mode, workers, log) as (process, port):
        one_round(port, http(record), count, model, video)  # warms up
        resident, passes = [memory(process)], []
        for _ in range(rounds):
            passes.append(one_round(port, http(record), count, model, video))
            resident.append(memory(process))
        answers, _ = ask_all(port, list(malformed(record, schema.width, bad)), CLIENTS)
        statuses = Counter(status for status, _ in answers)
        resident.append(memory(process))
    rate = spread(each.pop("rate") for each in passes)
    rows = {
        row: {
            "milliseconds": spread(each[row] for each in passes),
            "ratio": spread(each[row] / each[BASE] for each in passes),
        }
        for row in passes[0]
    }
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    told = f"{path.name}, {mode}, {counted(workers, 'worker')}: {size}, videos of {schema.max_frames} × {schema.width}"
    print(f"{told}, {rounds} rounds\n")
    print_table(rows, BASE)
    print(f"{rate['median']:.0f} requests a second from {CLIENTS} clients")
    megabytes = ", ".join(f"{each:.0f}" for each in resident)
    print(f"memory after warming up, after every {count:,} requests, after {bad:,} malformed: {megabytes} MB")
    print(f"{bad:,} malformed requests: {', '.join(f'{n} × {status}' for status, n in sorted(statuses.items()))}\n")
    if wrong := [status for status in statuses if not 400 <= status < 500]:
        raise SystemExit(f"malformed requests were answered with status {wrong}")
    return {"rows": rows, "requests_per_second": rate, "memory_mb": resident, "malformed": dict(statuses)}


def main() -> None:
    parser = options("Latency of the service.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--requests", type=int, default=1000, help="of 16 clients together, in a round")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--file", type=Path, help="a .reeltag file, instead of the models with random weights")
    parser.add_argument("--mode", choices=MODES, default="auto")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = [given.file] if given.file else [write_model(name, Path(folder)) for name in given.models]
        amounts = {"rounds": given.rounds, "count": given.requests, "bad": given.malformed, "log": Path(folder, "log")}
        results = {path.stem: measure(path, given.mode, given.workers, **amounts) for path in files}
    print(f"p95 of {CLIENTS} clients, to be at most {REACH} times one client's median")
    print_json(given.json, "serve", rounds=given.rounds, reach=REACH, models=results)


if __name__ == "__main__":
    main()
