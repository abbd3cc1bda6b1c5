"""A shard set: its manifest, random access to its videos, the hold-out and the order of an epoch."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reeltag import tensorfile
from reeltag.data.badrecords import BadRecord, BadRecords
from reeltag.data.example import Video, decode
from reeltag.data.schema import Schema
from reeltag.data.tfrecord import Record, Records, ShardBytes, ShardFile
from reeltag.errors import ArtifactError, DataError, UsageError
from reeltag.readahead import ahead
from reeltag.shardcache import fetch
from reeltag.storage import Source, content_hash, file_hash
from reeltag.tensorfile import TensorFile
from reeltag.transfer import RemoteFile, is_url

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest knows of one shard: where it is, what it holds, and how many records are in or left out."""

    path: str
    bytes: int
    sha256: str
    records: int
    left_out: int = 0

    @property
    def source(self) -> Source:
        """The shard itself."""
        return RemoteFile(self.path, self.bytes, None, self.sha256) if is_url(self.path) else Path(self.path)


@dataclass(frozen=True)
class Manifest:
    """A shard set that was read through once: every checksum, label and id of its N records holds.

    Attributes:
        schema: what the records look like.
        shards: one entry a shard, in order.
        offsets: byte offset of each record in its shard.
        numbers: of each record in its shard, with those counted that were left out.
        crcs: of each record's payload, masked, as the shard has it.
        frames: frames of each record in the shard, before the schema's limit cuts them.
        id_hashes: 64-bit hash of each record's id.
        class_counts: videos of each of C classes.
        labelled: number of records with labels.
        left_out: bad records of the shards, which are none of the N.
    """

    schema: Schema
    shards: tuple[ShardInfo, ...]
    offsets: Indices
    numbers: npt.NDArray[np.int32]
    crcs: npt.NDArray[np.uint32]
    frames: npt.NDArray[np.int32]
    id_hashes: npt.NDArray[np.uint64]
    class_counts: Indices
    labelled: int
    left_out: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the records say, wherever the shards lie; which of them are bad follows from it."""
        return content_hash([self.schema.model_dump(), [shard.sha256 for shard in self.shards]])

    @property
    def first_records(self) -> Indices:
        """Index of each shard's first record, and N last."""
        return np.cumsum([0, *(shard.records for shard in self.shards)])

    def save(self, path: Path) -> None:
        """Write the manifest to one file."""
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        # Thousands of shards are more than a header holds.
        lists = {"shards": self.shards, "left_out": self.left_out}
        arrays |= {key: _json_bytes([vars(item) for item in items]) for key, items in lists.items()}
        content = {"schema": self.schema.model_dump(mode="json"), "labelled": self.labelled}
        tensorfile.write(path, arrays, content)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest that `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged, or was not written by this version of reeltag.
        """
        file = TensorFile(path)
        arrays = {key: file.read(key).copy() for key in _ARRAYS}
        shards, left_out = (json.loads(file.read(key).tobytes()) for key in ("shards", "left_out"))
        for place in (Path(shard["path"]) for shard in shards if not is_url(shard["path"])):
            if not place.is_absolute() or ".." in place.parts:
                raise ArtifactError(f"{path}: {place} is no whole path; remove its folder under stages and run again")
        return cls(
            Schema(**file.content["schema"]),
            tuple(ShardInfo(**shard) for shard in shards),
            labelled=file.content["labelled"],
            left_out=tuple(BadRecord(**record) for record in left_out),
            **arrays,
        )


def _json_bytes(content: object) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


_COLUMNS = {"offsets": np.int64, "numbers": np.int32, "crcs": np.uint32, "frames": np.int32, "id_hashes": np.uint64}
_ARRAYS = (*_COLUMNS, "class_counts")


def scan(
    paths: Sequence[Source],
    schema: Schema,
    advance: Callable[[int], None] = lambda size: None,
    *,
    max_bad_records: int = 0,
    labelled: bool = False,
    limit: int | None = None,
) -> Manifest:
    """Read a shard set through once and describe it.

    Args:
        paths: the shards, in order.
        schema: what their records hold.
        advance: told the bytes of each shard once it is read.
        max_bad_records: how many records may be left out because they are damaged, break the schema or repeat an id.
        labelled: a record without labels is bad too.
        limit: leave off after so many videos; by default all are read.

    Raises:
        DataError: the first bad record that may not be left out, or a shard of which the rest cannot be found.
    """
    shards: list[ShardInfo] = []
    tables = [np.empty(0, list(_COLUMNS.items()))]
    counts, known, bad = np.zeros(schema.classes, np.int64), 0, BadRecords(max_bad_records)
    left = limit
    for path in ahead(paths):
        source = fetch(path) if isinstance(path, RemoteFile) else path
        shard, before = ShardFile(source), len(bad.found)
        rows = []
        for record, video in islice(walk(shard, schema, bad, labelled=labelled), left):
            rows.append((record.offset, record.number, record.crc, video.length + video.cut, _id_hash(video.id)))
            if video.labels is not None:
                known += 1
                counts[video.labels] += 1
        tables.append(np.array(rows, tables[0].dtype))
        left_out = len(bad.found) - before
        if isinstance(source, RemoteFile):
            place, digest = source.url, source.sha256
        else:
            place, digest = str(source.resolve()), file_hash(source)
        shards.append(ShardInfo(place, shard.size, digest, len(rows), left_out))
        advance(shard.size)
        if left is not None and not (left := left - len(rows)):
            break
    table = np.concatenate(tables)
    columns = {name: table[name].copy() for name in _COLUMNS}
    manifest = Manifest(schema, tuple(shards), **columns, class_counts=counts, labelled=known)
    return replace(_without_repeats(manifest, bad), left_out=tuple(bad.found))


def walk(
    shard: Records, schema: Schema, bad: BadRecords | None = None, *, labelled: bool = False
) -> Iterator[tuple[Record, Video]]:
    """Every record of a shard, and its video.

    Args:
        shard: the shard.
        schema: what its records hold.
        bad: takes note of bad records; by default the first is raised.
        labelled: a record without labels is bad too.

    Raises:
        DataError: a bad record that may not be left out, or the rest of the shard cannot be found.
    """
    bad = bad or BadRecords()
    for record in shard.records(bad.leave_out):
        try:
            video = decode(record.payload, schema)
            if labelled and video.labels is None:
                raise DataError("has no labels; training and measuring need them, `reeltag predict` does not")
        except DataError as error:
            bad.leave_out(DataError(error.reason, file=shard.name, record=record.number, offset=record.offset))
        else:
            yield record, video


def _id_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _without_repeats(manifest: Manifest, bad: BadRecords) -> Manifest:
    """The manifest without the videos whose id stands before them."""
    kept = np.zeros(len(manifest), bool)
    kept[np.unique(manifest.id_hashes, return_index=True)[1]] = True
    shards, counts, labelled = Shards(manifest), manifest.class_counts.copy(), manifest.labelled
    for repeat in np.flatnonzero(~kept).tolist():
        first = int(np.flatnonzero(manifest.id_hashes == manifest.id_hashes[repeat])[0])
        video, (path, record, offset) = shards.read(repeat), shards.place(repeat)
        earlier = "record {1} of {0}".format(*shards.place(first))
        reason = f"id {video.id!r} stands already in {earlier}"
        bad.leave_out(DataError(reason, file=path, record=record, offset=offset))
        if video.labels is not None:
            labelled -= 1
            counts[video.labels] -= 1
    infos = []
    for info, (begin, end) in zip(manifest.shards, pairwise(manifest.first_records), strict=True):
        records = int(kept[begin:end].sum())
        infos.append(replace(info, records=records, left_out=info.left_out + info.records - records))
    columns = {name: getattr(manifest, name)[kept] for name in _COLUMNS}
    return replace(manifest, shards=tuple(infos), **columns, class_counts=counts, labelled=labelled)


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
        return self._info(index).path, int(self.manifest.numbers[index]), int(self.manifest.offsets[index])

    def read(self, index: int) -> Video:
        """Read video `index` of the set.

        Raises:
            DataError: the shard changed since the manifest was made.
        """
        path, number, offset = self.place(index)
        info = self._info(index)
        try:
            shard = _open_remote(info) if is_url(path) else _open(info)
            record = shard.record(offset, number)
            if record.crc != self.manifest.crcs[index]:
                raise DataError("holds another record than when the shard was indexed")
            video = decode(record.payload, self.manifest.schema)
            if _id_hash(video.id) != self.manifest.id_hashes[index] or video.length != self.lengths[index]:
                raise DataError("holds another video than when the shard was indexed")
        except DataError as error:
            again = "run again, and it is fetched anew" if is_url(path) else "`touch` this one and run again"
            reason = f"{error.reason}; put back the shard that was indexed, or {again}"
            raise DataError(reason, file=path, record=number, offset=offset) from error
        return video

    @property
    def are_remote(self) -> bool:
        """Whether some are behind URLs."""
        return any(is_url(shard.path) for shard in self.manifest.shards)

    def numbers(self, indices: Indices) -> Indices:
        """Numbers of the shards that videos are in."""
        return np.searchsorted(self._first, indices, "right") - 1

    def remote(self, indices: Indices) -> list[RemoteFile]:
        """The shards behind URLs that videos are in, each once."""
        sources = (self.manifest.shards[number].source for number in np.unique(self.numbers(indices)))
        return [source for source in sources if isinstance(source, RemoteFile)]

    def _info(self, index: int) -> ShardInfo:
        return self.manifest.shards[bisect_right(self._first, index) - 1]


def _opened(info: ShardInfo) -> ShardFile:
    """A shard, if it has the size that it had."""
    shard = ShardFile(info.source)
    if shard.size != info.bytes:
        raise DataError(f"the shard has {shard.size:,} bytes and had {info.bytes:,} when it was indexed")
    return shard


_open = lru_cache(maxsize=256)(_opened)
_open_remote = lru_cache(maxsize=8)(_opened)  # the disk keeps what is open, even if it is no longer in the cache


def read_all(
    paths: Sequence[Source], schema: Schema, bad: BadRecords | None = None, *, labelled: bool = False
) -> Iterator[Video]:
    """Read shards from first to last without a manifest; an id may stand there several times.

    Args:
        paths: the shards, in order.
        schema: what their records hold.
        bad: takes note of bad records; by default the first is raised.
        labelled: a record without labels is bad too.

    Raises:
        DataError: a bad record that may not be left out, or a shard of which the rest cannot be found.
    """
    for path in ahead(paths):
        for _, video in walk(ShardFile(path), schema, bad, labelled=labelled):
            yield video


def read_bytes(content: bytes, schema: Schema) -> Iterator[Video]:
    """Read a shard that is in memory.

    Raises:
        DataError: a record is damaged or breaks the schema.
    """
    for _, video in walk(ShardBytes(content), schema):
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
