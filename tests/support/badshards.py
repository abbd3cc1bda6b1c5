"""Shards with bad records in them, and the same shards without."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from conftest import encode_unchecked, make_video
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import frame_record, write_shard
from reeltag.data.schema import Feature, Schema

SCHEMA = Schema(features=(Feature(name="rgb", width=6), Feature(name="audio", width=2)), classes=8, max_frames=9)


def good(name: str, number: int = 0) -> bytes:
    """A sound record."""
    return encode(video_of(name, number), SCHEMA)


def video_of(name: str, number: int = 0) -> Video:
    return make_video(SCHEMA, 2 + number % 7, [number % 8, (3 * number + 1) % 8], name)


def damaged(name: str) -> bytes:
    """A framed record, of which a bit of the payload is wrong."""
    record = bytearray(frame_record(good(name)))
    record[40] ^= 16
    return bytes(record)


def broken(name: str, **changes: object) -> bytes:
    return frame_record(encode_unchecked(replace(video_of(name), **changes), SCHEMA))


def without_id(name: str) -> bytes:
    message = SequenceExample.FromString(good(name))
    del message.context.feature["id"]
    return message.SerializeToString()


RGB, AUDIO = np.zeros((3, 6), np.uint8), np.zeros((3, 2), np.uint8)
# Each makes a bad record, framed; the last ones are bad only beside what comes before them.
KINDS: dict[str, Callable[[str], bytes]] = {
    "CRC of the payload does not match": damaged,
    "is not a valid SequenceExample": lambda name: frame_record(b"These are notes."),
    "no feature 'rgb'": lambda name: frame_record(b""),
    "no id": lambda name: frame_record(without_id(name)),
    "label 11 is outside the 8 classes": lambda name: broken(name, labels=np.array([1, 11])),
    "'audio', frame 0: 5 values, expected 2": lambda name: broken(name, features=(RGB, RGB[:, :5])),
    "features disagree on the number of frames": lambda name: broken(name, features=(RGB, AUDIO[:2])),
    "0 frames": lambda name: broken(name, features=(RGB[:0], AUDIO[:0])),
    "has no labels": lambda name: broken(name, labels=None),
    "occurs already in record": lambda name: frame_record(good(name)),
}
NEED_LABELS, REPEATED = "has no labels", "occurs already in record"
FORGIVEN = ("no id", "features disagree on the number of frames")  # when tagging


@dataclass(frozen=True)
class Case:
    """Shards in two folders.

    Attributes:
        bad: with bad records.
        clean: the same without them.
        places: shard, record, byte offset and the begin of the reason of each bad record, in order.
    """

    bad: list[Path]
    clean: list[Path]
    places: list[tuple[str, int, int, str]]


def make_case(
    folder: Path,
    rng: random.Random,
    kinds: Sequence[str] = tuple(KINDS),
    shards: int = 3,
    videos: int = 12,
    prefix: str = "train",
) -> Case:
    """Shards in which a bad record of each kind stands somewhere, one that repeats an id after the first."""
    (folder / "bad").mkdir(parents=True, exist_ok=True)
    (folder / "clean").mkdir(exist_ok=True)
    where = {kind: (rng.randrange(shards), rng.randrange(1, videos)) for kind in kinds}
    bad, clean, places, repeats = [], [], [], []
    for shard in range(shards):
        path, content = folder / "bad" / f"{prefix}-{shard}.tfrecord", b""
        names = [f"{prefix}-{shard}-{number}" for number in range(videos)]
        record = 0
        for number, name in enumerate(names):
            for kind in [kind for kind in kinds if where[kind] == (shard, number)]:
                place = (str(path), record, len(content), kind)
                (repeats if kind == REPEATED else places).append(place)
                content += KINDS[kind](names[0] if kind == REPEATED else f"bad {kind}")
                record += 1
            content += frame_record(good(name, number))
            record += 1
        path.write_bytes(content)
        bad.append(path)
        clean.append(folder / "clean" / path.name)
        write_shard(clean[-1], [good(name, number) for number, name in enumerate(names)])
    return Case(bad, clean, places + repeats)
