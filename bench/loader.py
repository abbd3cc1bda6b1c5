"""Videos a CPU second from shards to training batches: order, reading with CRC, padding, labels; reeltag and tf.data.

The shards have YouTube-8M's dimensions. A tagger takes reeltag's batch as it is, in uint8, and dequantises it where it
computes; the float batch has that done, as tf.data's has.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measure
from measure import Passes, Peer
from random_videos import FRAMES, SCHEMA, generate, random_video
from reeltag.core.environment import keep_freed_memory
from reeltag.data.formats.example import encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.loader import Batch, sequential_batches, training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.shards import Shards, scan
from reeltag.models.layers import dequantize

SHARDS = WORKERS = 2
BATCH = 80
TF_DATA = "tf.data, float batch"


def floats(batch: Batch) -> Tensor:
    """Dequantised frames, zero in the padding."""
    values = dequantize(batch.frames)
    for video, length in zip(values, batch.lengths.tolist(), strict=True):
        video[length:] = 0
    return values


def load(shards: Shards, steps: int) -> None:
    for _ in train(shards, steps):
        pass


def load_floats(shards: Shards, steps: int) -> None:
    for batch in train(shards, steps):
        floats(batch)


def train(shards: Shards, steps: int, workers: int = 0) -> Iterator[Batch]:
    return training_batches(
        shards, np.arange(len(shards)), shuffle=Shuffle(1), batch_size=BATCH, steps=range(steps), workers=workers
    )


def numpy_floats(codes: list[np.ndarray], steps: int) -> None:
    """Dequantise and pad videos [T, D] that are in memory already."""
    for _ in range(steps):
        batch = np.zeros((BATCH, SCHEMA.max_frames, SCHEMA.width), np.float32)
        for row, frames in zip(batch, codes, strict=True):
            row[: len(frames)] = frames * np.float32(4 / 255) + np.float32(4 / 512 - 2)


def refuse_difference(peer: Peer, path: Path) -> None:
    """Stop unless both make the same labels and the same floats of videos of many lengths."""
    videos = [random_video(9, length, length=length) for length in range(SCHEMA.max_frames, 0, -5)]
    write_shard(path, (encode(video, SCHEMA) for video in videos))
    (batch,) = sequential_batches(Shards(scan([path], SCHEMA)), batch_size=len(videos))
    ours = [
        [name, labels.nonzero()[:, 0].tolist(), zlib.crc32(frames.numpy())]
        for name, labels, frames in zip(batch.ids, batch.labels, floats(batch), strict=True)
    ]
    if ours != peer.ask("check", BATCH, path):
        raise SystemExit("reeltag and tf.data make different batches")


def measure_loaders(shards: Shards, steps: int, peer: Peer | None, rounds: int) -> Passes:
    """Passes of all loaders, on one core."""
    paths = [shard.path for shard in shards.manifest.shards]
    codes = [shards.read(index).frames() for index in range(BATCH)]
    ours: dict[str, Callable[[], Any]] = {
        "reeltag, uint8 batch": partial(load, shards, steps),
        "reeltag, float batch": partial(load_floats, shards, steps),
        "NumPy, dequantise and pad alone": partial(numpy_floats, codes, steps),
    }
    videos = steps * BATCH
    rows: dict[str, Callable[[], measure.Times]] = {
        name: partial(measure.timed, call, videos) for name, call in ours.items()
    }
    if peer:
        rows[TF_DATA] = partial(peer.timed, len(shards), "pass", BATCH, *paths)
    return measure.run_rounds(rows, rounds)


def take(stream: Iterator[Batch], steps: int) -> None:
    for _ in range(steps):
        next(stream)


def measure_workers(shards: Shards, steps: int, rounds: int) -> Passes:
    """Batches by the clock, made in this process or by two others; not in turns, for those read ahead."""
    passes: Passes = {}
    for name, workers in {"this process": 0, "two loader workers": WORKERS}.items():
        stream = train(shards, sys.maxsize, workers)
        row = {name: partial(measure.timed, partial(take, stream, steps), steps * BATCH)}
        passes |= measure.run_rounds(row, rounds)
    return passes


def main() -> None:
    parser = measure.options("Videos a CPU second from shards to batches, by reeltag and by tf.data.")
    parser.add_argument("--batches", type=int, default=10, help="of 80 videos each, a pass")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        shards = Shards(scan(generate(Path(folder), SHARDS, BATCH * options.batches // SHARDS), SCHEMA))
        workers = measure.rates(measure_workers(shards, options.batches, options.rounds), "this process", "wall")
        measure.pin()
        with Peer.find(options.peers, "peer_tf_loader.py") as peer:
            if peer:
                refuse_difference(peer, Path(folder) / "lengths.tfrecord")
            passes = measure_loaders(shards, options.batches, peer, options.rounds)
        base = TF_DATA if peer else None
        rows = measure.rates(passes, base)
    print(f"{len(shards)} videos of {FRAMES} in {SHARDS} shards, batches of {BATCH}, {options.rounds} rounds")
    print(f"Peer: {peer.name if peer else 'none'}\n\nOn one core:\n")
    measure.print_table(rows, base)
    print("By the clock, on all cores:\n")
    measure.print_table(workers, "this process")
    content = {"videos": len(shards), "rounds": options.rounds, "peer": peer and peer.name, "against": base}
    measure.print_json(options.json, "loader", **content, rows=rows, workers=workers)


if __name__ == "__main__":
    main()
