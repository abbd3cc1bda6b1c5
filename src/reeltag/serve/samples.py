"""A few records that a person can pick from on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from reeltag.data.example import decode
from reeltag.data.schema import Schema
from reeltag.data.tfrecord import ShardFile, framed
from reeltag.errors import DataError

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


def read_samples(paths: Sequence[Path], schema: Schema) -> list[Sample]:
    """The first records of shards.

    Raises:
        DataError: one of them is damaged or does not follow the schema.
    """
    samples = []
    for path in paths:
        for number, (offset, payload) in enumerate(islice(ShardFile(path).records(), MOST)):
            try:
                video = decode(payload, schema)
            except DataError as error:
                raise DataError(error.reason, file=str(path), record=number, offset=offset) from error
            samples.append(Sample(video.id, video.length, framed(payload)))
    return samples
