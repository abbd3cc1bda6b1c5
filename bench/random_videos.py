"""Random videos of YouTube-8M's dimensions, for the benches that read shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.schema import preset_schema

SCHEMA = preset_schema("yt8m-frame")
FRAMES = f"{SCHEMA.max_frames} × {SCHEMA.width} bytes"


def random_video(*place: int, length: int = SCHEMA.max_frames) -> Video:
    rng = np.random.default_rng(place)
    frames = rng.integers(0, 256, (length, SCHEMA.width), np.uint8)
    labels = np.sort(rng.choice(SCHEMA.classes, rng.integers(1, 6), replace=False))
    return Video("-".join(map(str, place)), labels, tuple(np.split(frames, np.cumsum(SCHEMA.widths)[:-1], axis=1)))


def generate(folder: Path, shards: int, videos: int) -> list[Path]:
    """Shards of so many videos each, all different; equal calls give equal bytes."""
    paths = [folder / f"{number}.tfrecord" for number in range(shards)]
    for number, path in enumerate(paths):
        write_shard(path, (encode(random_video(number, index), SCHEMA) for index in range(videos)))
    return paths
