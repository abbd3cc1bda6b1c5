"""A few records that a person can pick from on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from reeltag.core.storage import DataFile
from reeltag.data.formats.tfrecord import ShardFile, frame_record
from reeltag.data.schema import Schema
from reeltag.data.shards import read_records

MOST = 12  # of each shard


@dataclass(frozen=True)
class Sample:
    """One record.

    Attributes:
        id: the video's name.
        frames: how many it has, cut at the schema's limit.
        record: the TFRecord, as a request to `/predict` takes it.
    """

    id: str
    frames: int
    record: bytes


def read_samples(paths: Sequence[DataFile], schema: Schema) -> list[Sample]:
    """The first records of shards.

    Raises:
        DataError: one of them is damaged or does not follow the schema.
    """
    samples = []
    for path in paths:
        for record, video in islice(read_records(ShardFile(path), schema), MOST):
            samples.append(Sample(video.id, video.length, frame_record(record.payload)))
    return samples
