"""A shard set: its manifest, random access to its videos, the hold-out and the order of an epoch."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reeltag import tensorfile
from reeltag.data.example import Video, decode
from reeltag.data.schema import Schema
from reeltag.data.tfrecord import Records, ShardBytes, ShardFile
from reeltag.errors import DataError, UsageError
from reeltag.storage import content_hash, file_hash
from reeltag.tensorfile import TensorFile

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest knows of one shard."""

    path: str
    bytes: int
    sha256: str
    records: int


@dataclass(frozen=True)
class Manifest:
    """A shard set that was read through once: every checksum, label and id in it holds.

    Attributes:
        schema: what the records look like.
        shards: one entry a shard, in order.
        offsets: byte offset of each of N records in its shard.
        frames: frames of each record in the shard, before the schema's limit cuts them.
        id_hashes: 64-bit hash of each record's id.
        class_counts: videos of each of C classes.
        labelled: number of records with labels.
    """

    schema: Schema
    shards: tuple[ShardInfo, ...]
    offsets: Indices
    frames: npt.NDArray[np.int32]
    id_hashes: npt.NDArray[np.uint64]
    class_counts: Indices
    labelled: int

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the records say, wherever the shards lie."""
        return content_hash([self.schema.model_dump(), [shard.sha256 for shard in self.shards]])

    @property
    def first_records(self) -> Indices:
        """Index of each shard's first record, and N last."""
        return np.cumsum([0, *(shard.records for shard in self.shards)])

    def save(self, path: Path) -> None:
        """Write the manifest to one file."""
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        # Thousands of shards are more than a header holds.
        shards = json.dumps([vars(shard) for shard in self.shards]).encode()
        content = {"schema": self.schema.model_dump(mode="json"), "labelled": self.labelled}
        tensorfile.write(path, arrays | {"shards": np.frombuffer(shards, np.uint8)}, content)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest that `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged, or was not written by this version of reeltag.
        """
        file = TensorFile(path)
        arrays = {key: file.read(key).copy() for key in _ARRAYS}
        shards = tuple(ShardInfo(**shard) for shard in json.loads(file.read("shards").tobytes()))
        return cls(Schema(**file.content["schema"]), shards, labelled=file.content["labelled"], **arrays)


_ARRAYS = ("offsets", "frames", "id_hashes", "class_counts")


def scan(paths: Sequence[Path], schema: Schema, advance: Callable[[int], None] = lambda size: None) -> Manifest:
    """Read a shard set through once and describe it.

    Args:
        paths: the shards, in order.
        schema: what their records hold.
        advance: told the bytes of each shard once it is read.

    Raises:
        DataError: the first record that is damaged, breaks the schema or repeats an id.
    """
    shards: list[ShardInfo] = []
    offsets: list[int] = []
    frames: list[int] = []
    hashes: list[int] = []
    counts, labelled = np.zeros(schema.classes, np.int64), 0
    for path in paths:
        first = len(offsets)
        for offset, video in _walk(ShardFile(path), schema):
            offsets.append(offset)
            frames.append(video.length + video.cut)
            hashes.append(_id_hash(video.id))
            if video.labels is not None:
                labelled += 1
                counts[video.labels] += 1
        size = path.stat().st_size
        shards.append(ShardInfo(str(path.resolve()), size, file_hash(path), len(offsets) - first))
        advance(size)
    manifest = Manifest(
        schema,
        tuple(shards),
        np.array(offsets, np.int64),
        np.array(frames, np.int32),
        np.array(hashes, np.uint64),
        counts,
        labelled,
    )
    _refuse_duplicates(manifest)
    return manifest


def _walk(shard: Records, schema: Schema) -> Iterator[tuple[int, Video]]:
    """Byte offset and video of every record of a shard."""
    for number, (offset, payload) in enumerate(shard.records()):
        yield offset, _decode(payload, schema, shard, number, offset)


def _decode(payload: bytes, schema: Schema, shard: Records, number: int, offset: int) -> Video:
    try:
        return decode(payload, schema)
    except DataError as error:
        raise DataError(error.reason, file=shard.name, record=number, offset=offset) from error


def _id_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _refuse_duplicates(manifest: Manifest) -> None:
    order = np.argsort(manifest.id_hashes, kind="stable")
    same = np.flatnonzero(np.diff(manifest.id_hashes[order]) == 0)
    if len(same):
        first, second = order[same[0]], order[same[0] + 1]
        shards = Shards(manifest)
        video, (path, record, offset) = shards.read(first), shards.place(second)
        earlier = "record {1} of {0}".format(*shards.place(first))
        raise DataError(f"id {video.id!r} stands already in {earlier}", file=path, record=record, offset=offset)


def refuse_overlap(train: Manifest, test: Manifest) -> None:
    """Keep test videos out of training.

    Raises:
        DataError: a video stands in both sets.
    """
    shared = np.intersect1d(train.id_hashes, test.id_hashes)
    if len(shared):
        index = int(np.flatnonzero(test.id_hashes == shared[0])[0])
        shards = Shards(test)
        path, record, offset = shards.place(index)
        name = shards.read(index).id
        raise DataError(
            f"{len(shared)} test videos are training videos too, the first is {name!r}; "
            "give data.train and data.test different shards",
            file=path,
            record=record,
            offset=offset,
        )


class Shards:
    """Random access to the videos of a manifest; cheap to make and to send to a worker.

    Args:
        manifest: the shard set.

    Attributes:
        lengths: [N] frames of each video, cut at the schema's limit.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.lengths = np.minimum(manifest.frames, manifest.schema.max_frames)
        self._first = manifest.first_records.tolist()  # bisect is faster there than in an array

    def __len__(self) -> int:
        return len(self.manifest)

    def place(self, index: int) -> tuple[str, int, int]:
        """File, record number and byte offset of a video."""
        shard = bisect_right(self._first, index) - 1
        return self.manifest.shards[shard].path, int(index) - self._first[shard], int(self.manifest.offsets[index])

    def read(self, index: int) -> Video:
        """Read video `index` of the set.

        Raises:
            DataError: the record changed since the manifest was made.
        """
        path, number, offset = self.place(index)
        shard = _open(path)
        video = _decode(shard.record(offset, number), self.manifest.schema, shard, number, offset)
        if _id_hash(video.id) != self.manifest.id_hashes[index] or video.length != self.lengths[index]:
            reason = "holds another video than when the shard was indexed; run again, so that it is indexed anew"
            raise DataError(reason, file=path, record=number, offset=offset)
        return video


@lru_cache(maxsize=256)
def _open(path: str) -> ShardFile:
    return ShardFile(Path(path))


def read_all(paths: Sequence[Path], schema: Schema) -> Iterator[Video]:
    """Read shards from first to last without a manifest.

    Raises:
        DataError: a record is damaged or breaks the schema.
    """
    for path in paths:
        for _, video in _walk(ShardFile(path), schema):
            yield video


def read_bytes(content: bytes, schema: Schema) -> Iterator[Video]:
    """Read a shard that is in memory.

    Raises:
        DataError: a record is damaged or breaks the schema.
    """
    for _, video in _walk(ShardBytes(content), schema):
        yield video


def split_holdout(
    manifest: Manifest, seed: int, *, fraction: float | None = None, shards: int | None = None
) -> tuple[Indices, Indices]:
    """Indices of the training and of the hold-out videos, drawn by `seed`.

    Args:
        manifest: the shard set.
        seed: any whole number.
        fraction: share of the videos to hold out, or
        shards: number of whole shards to hold out (the paper holds out 800 of its validation shards).

    Raises:
        UsageError: nothing would be left to train on, or no video for each half of the hold-out.
    """
    rng = np.random.default_rng([seed, 0x401D])
    held = np.zeros(len(manifest), bool)
    if shards is not None:
        first = manifest.first_records
        for shard in rng.permutation(len(manifest.shards))[:shards]:
            held[first[shard] : first[shard + 1]] = True
    elif fraction is not None:
        held[rng.permutation(len(manifest))[: round(fraction * len(manifest))]] = True
    if held.all() or held.sum() < 2:
        raise UsageError(
            f"data.holdout: holds out {held.sum()} of {len(manifest)} videos; hold out two or more, and leave some"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_folds(indices: Indices, seed: int, folds: int) -> list[Indices]:
    """Deal videos out to folds of equal size (one more in some), drawn by `seed`; each in ascending order."""
    shuffled = np.random.default_rng([seed, 0xF01D]).permutation(indices)
    return [np.sort(shuffled[fold::folds]) for fold in range(folds)]


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """The order in which an epoch visits `count` videos: a permutation, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def step_positions(count: int, seed: int, step: int, batch_size: int) -> Indices:
    """Positions of the videos of a training step.

    The epochs' orders follow each other in one stream that steps cut into full batches, so every
    video comes once an epoch and no batch is short.
    """
    begin = step * batch_size
    epochs = range(begin // count, (begin + batch_size - 1) // count + 1)
    begin -= epochs[0] * count
    # Cut first: an epoch may have millions of videos.
    orders = [_cached_order(count, seed, epoch)[: begin + batch_size] for epoch in epochs]
    return np.concatenate([orders[0][begin:], *orders[1:]])[:batch_size]


_cached_order = lru_cache(maxsize=4)(epoch_order)
