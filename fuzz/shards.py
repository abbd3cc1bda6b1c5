"""A shard: the bytes as they are, or as records under checksums that hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reeltag.core.errors import DataError
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import frame_record
from reeltag.data.inspect import describe_record
from reeltag.data.ratings import Ratings
from reeltag.data.schema import Feature, Schema
from reeltag.data.segments import iter_examples
from reeltag.data.shards import read_shard_bytes

FEATURES = (Feature(name="rgb", width=3), Feature(name="audio", width=2))
SCHEMAS = (
    Schema(features=FEATURES, classes=5, max_frames=4),
    Schema(features=FEATURES, classes=5, max_frames=4, dtype="float32"),
    Schema(features=FEATURES, classes=5, level="video", dtype="float32"),
    Schema(features=FEATURES, classes=5, max_frames=4, segments=2),
)


def one_input(data: bytes) -> None:
    """Read what the bytes make: after a first byte of 0 they are the shard, otherwise one record in each line."""
    content = (
        data[1:] if data[:1] == b"\x00" else b"".join(frame_record(record) for record in data[1:].split(b"\n--\n"))
    )
    for schema in SCHEMAS:
        try:
            for video in read_shard_bytes(content, schema):
                check(video, schema)
        except DataError as error:
            assert error.reason
    try:
        describe_record(data[1:])
    except DataError as error:
        assert error.reason


def check(video: Video, schema: Schema) -> None:
    """A video is what its schema says, and is written as what it is."""
    frames = video.frames()
    assert frames.shape == (video.length, schema.width) and frames.dtype == schema.dtype
    assert 0 < video.length <= schema.max_frames and np.isfinite(frames).all()
    assert video.labels is None or all(0 <= label < schema.classes for label in video.labels.tolist())
    (again,) = read_shard_bytes(frame_record(encode(video, schema)), schema)
    assert again.id == video.id and np.array_equal(again.frames(), frames)
    assert video.labels is None or np.array_equal(again.labels, video.labels)
    for one, other in zip(iter_examples(video, schema), iter_examples(again, schema), strict=True):
        assert str(one) == str(other)  # with labels and ratings, if it is a segment


def seeds() -> Iterator[bytes]:
    """Videos of every schema, as records and as shards."""
    for schema in SCHEMAS:
        length = 1 if schema.level == "video" else 3
        features = tuple(np.ones((length, width), schema.dtype) for width in schema.widths)
        rated = Ratings(np.array([0, 2]), np.array([4, 1]), np.array([True, False])) if schema.segments else None
        for labels in (None, np.array([1, 4])):
            record = encode(Video("name", labels, features, ratings=rated), schema)
            yield b"\x00" + frame_record(record) + frame_record(record)
            yield b"\x01" + record + b"\n--\n" + record
