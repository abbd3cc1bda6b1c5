"""Sample records that the page offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from reeltag.core.storage import DataFile
from reeltag.data.formats.tfrecord import ShardFile, frame_record
from reeltag.data.schema import Schema
from reeltag.data.shards import read_records

MOST = 12  # records per shard


@dataclass(frozen=True)
class Sample:
    """Record that the page offers.

    Attributes:
        id: id of the video.
        frames: number of frames, cut at the schema's limit.
        record: the TFRecord, ready to be sent to `/predict`.
    """

    id: str
    frames: int
    record: bytes


def read_samples(paths: Sequence[DataFile], schema: Schema) -> list[Sample]:
    """Return the first records of each shard.

    Raises:
        DataError: a record is damaged or does not follow the schema.
    """
    samples = []
    for path in paths:
        for record, video in islice(read_records(ShardFile(path), schema), MOST):
            samples.append(Sample(video.id, video.length, frame_record(record.payload)))
    return samples
