"""Shard sets: their manifest, and random access to their examples, which are videos or segments."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from reeltag.core import tensorfile
from reeltag.core.errors import ArtifactError, DataError, UsageError
from reeltag.core.remote_files import RemoteFile, is_url
from reeltag.core.storage import DataFile, content_hash, file_hash, file_size, refuse_existing
from reeltag.core.tensorfile import TensorFile
from reeltag.core.text import counted, same_form
from reeltag.data.bad_records import BadRecord, BadRecords
from reeltag.data.formats.example import MissingFeatureError, Video, decode, encode
from reeltag.data.formats.tfrecord import Record, Records, ShardBytes, ShardFile, write_shard
from reeltag.data.inspect import label_values, record_id
from reeltag.data.prefetch import prefetched
from reeltag.data.schema import Schema
from reeltag.data.segments import cut_example, iter_examples, refuse_unlabelled
from reeltag.data.shard_cache import fetch

Indices = npt.NDArray[np.int64]
EMPTY = "empty shards, passed over"


@dataclass(frozen=True)
class ShardInfo:
    """Manifest entry of a shard: location, size, hash, and the numbers of examples and of skipped records."""

    path: str
    bytes: int
    sha256: str
    records: int
    left_out: int = 0

    @property
    def source(self) -> DataFile:
        """Local path or remote file of the shard."""
        return RemoteFile(self.path, self.bytes, None, self.sha256) if is_url(self.path) else Path(self.path)


@dataclass(frozen=True)
class Manifest:
    """Index of a shard set with N examples, whose checksums, labels and ids were all verified once.

    An example is a record's video, or a segment of it; those of a record follow each other.

    Attributes:
        schema: of the records.
        shards: one entry a shard, in order.
        offsets: byte offset of each example's record in its shard.
        numbers: index of each example's record in its shard; skipped records count.
        crcs: masked CRC of the record's payload, as stored in the shard.
        frames: frames of the record in the shard, before the schema's limit cuts them.
        id_hashes: 64-bit hash of the video's id.
        starts: frame of the record where the example starts.
        class_counts: examples of each of C classes.
        labelled: number of examples with labels.
        left_out: bad records of the shards, which have no examples.
        remarks: numbers of records and shards that the schema forgave something, by what it was.
    """

    schema: Schema
    shards: tuple[ShardInfo, ...]
    offsets: Indices
    numbers: npt.NDArray[np.int32]
    crcs: npt.NDArray[np.uint32]
    frames: npt.NDArray[np.int32]
    id_hashes: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int32]
    class_counts: Indices
    labelled: int
    left_out: tuple[BadRecord, ...] = ()
    remarks: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the records' schema and content, independent of the shards' location."""
        return content_hash([self.schema.model_dump(), [shard.sha256 for shard in self.shards]])

    @property
    def first_records(self) -> Indices:
        """Index of each shard's first example, followed by N."""
        return np.cumsum([0, *(shard.records for shard in self.shards)])

    @property
    def first_examples(self) -> Indices:
        """Index of each video's first example."""
        begins = np.diff(self.offsets, prepend=-1) != 0
        first = self.first_records
        begins[first[first < len(self)]] = True
        return np.flatnonzero(begins)

    @property
    def videos(self) -> Indices:
        """[N] video index of each example."""
        return np.searchsorted(self.first_examples, np.arange(len(self)), "right") - 1

    def save(self, path: Path) -> None:
        """Write the manifest to one file."""
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        # The header is too small for thousands of shards.
        lists = {"shards": self.shards, "left_out": self.left_out}
        arrays |= {key: _json_bytes([vars(item) for item in items]) for key, items in lists.items()}
        content = {"schema": self.schema.model_dump(mode="json"), "labelled": self.labelled}
        if self.remarks:
            content["remarks"] = dict(self.remarks)
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
                raise ArtifactError(f"{path}: {place} is not an absolute path; remove {path.parent} and run again")
        return cls(
            Schema(**file.content["schema"]),
            tuple(ShardInfo(**shard) for shard in shards),
            labelled=file.content["labelled"],
            left_out=tuple(BadRecord(**record) for record in left_out),
            remarks=file.content.get("remarks", {}),
            **arrays,
        )


def _json_bytes(content: object) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


_COLUMNS = {
    "offsets": np.int64,
    "numbers": np.int32,
    "crcs": np.uint32,
    "frames": np.int32,
    "id_hashes": np.uint64,
    "starts": np.int32,
}
_ARRAYS = (*_COLUMNS, "class_counts")


def scan(
    paths: Sequence[DataFile],
    schema: Schema,
    advance: Callable[[int], None] = lambda size: None,
    *,
    max_bad_records: int = 0,
    labelled: bool = False,
    limit: int | None = None,
    rated_only: bool = False,
) -> Manifest:
    """Read a shard set once and index it.

    Args:
        paths: the shards, in order.
        schema: of their records.
        advance: called with the size of each shard once it is read.
        max_bad_records: number of records that may be skipped as damaged, against the schema or of a repeated id.
        labelled: a record without labels is bad too.
        limit: stop after this many videos; by default all are read.
        rated_only: of segments, only those with a rating, which training can use.

    Raises:
        DataError: a bad record beyond the limit, or a damaged length after which no record can be located.
        UsageError: labels may be n-hot, and the schema does not say; see `LabelLists`.
    """
    shards: list[ShardInfo] = []
    tables = [np.empty(0, list(_COLUMNS.items()))]
    counts, known, videos, bad = np.zeros(schema.classes, np.int64), 0, 0, BadRecords(max_bad_records)
    lists = LabelLists(schema)
    for path in prefetched(paths):
        source = fetch(path) if isinstance(path, RemoteFile) else path
        shard, before = ShardFile(source), len(bad.records) + bad.skipped
        rows, left = [], None if limit is None else limit - videos
        for record, video in islice(read_records(shard, schema, bad, labelled=labelled), left):
            videos += 1
            lists.add(record.payload, video)
            whole = (record.offset, record.number, record.crc, video.length + video.cut, id_hash(video.id))
            for start, example in iter_examples(video, schema, rated_only=rated_only):
                rows.append((*whole, start))
                if example.labelled:
                    known += 1
                    counts[example.labels] += 1
        tables.append(np.array(rows, tables[0].dtype))
        left_out = len(bad.records) + bad.skipped - before
        if isinstance(source, RemoteFile):
            place, digest = source.url, source.sha256
        else:
            place, digest = str(source.resolve()), file_hash(source)
        size = file_size(source)
        shards.append(ShardInfo(place, size, digest, len(rows), left_out))
        advance(size)
        if videos == limit:
            break
    lists.refuse_n_hot()
    table = np.concatenate(tables)
    columns = {name: table[name].copy() for name in _COLUMNS}
    manifest = Manifest(schema, tuple(shards), **columns, class_counts=counts, labelled=known)
    return replace(_without_repeats(manifest, bad), left_out=tuple(bad.records), remarks=dict(bad.remarks))


def read_records(
    shard: Records, schema: Schema, bad: BadRecords | None = None, *, labelled: bool = False
) -> Iterator[tuple[Record, Video]]:
    """Yield every record of a shard with its video.

    Args:
        shard: the shard.
        schema: what its records hold.
        bad: collects bad records; by default the first is raised.
        labelled: a record without labels is bad too.

    Raises:
        DataError: a bad record beyond the limit, or a damaged length after which no record can be located.
    """
    bad = bad or BadRecords()
    if schema.empty_shards == "skip" and isinstance(shard, ShardFile) and not file_size(shard.path):
        bad.remarks[EMPTY] += 1
        return
    for record in shard.records(bad.skip):
        try:
            video = decode(record.payload, schema, unnamed_id(shard.name, record.number))
            if labelled:
                refuse_unlabelled(video, record.payload, schema)
        except DataError as error:
            if isinstance(error, MissingFeatureError) and schema.missing == "skip":
                bad.skipped += 1
                bad.remarks[f"records without {error.feature!r}, left out"] += 1
                continue
            name = record_id(record.payload, schema)
            bad.skip(DataError(error.reason, file=shard.name, record=record.number, offset=record.offset, id=name))
        else:
            if video.remarks:
                bad.remarks.update(video.remarks)
            yield record, video


def unnamed_id(shard: str | None, number: int) -> str:
    """Return the id of a record that has none: the name of its shard, without folders, and its number."""
    return f"{PurePath(shard).name}:{number}" if shard else f"record:{number}"


class LabelLists:
    """Watch for label lists that may be n-hot: all of one length of at least 2, of zeros and ones only.

    Read as class numbers they all mean the classes 0 and 1, and a model would learn these two.

    Args:
        schema: of the records.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema, self._length, self._records = schema, 0, 0
        self._clear = schema.labels.encoding is not None or schema.segments is not None

    def add(self, record: bytes, video: Video) -> None:
        """Look at the labels of a record, as long as all could be n-hot."""
        if self._clear or video.labels is None or not len(video.labels):
            return
        if video.labels[-1] > 1:
            self._clear = True
            return
        length = len(label_values(record, self._schema))
        self._clear = length < 2 or self._length not in (0, length)
        self._length, self._records = length, self._records + 1

    def refuse_n_hot(self) -> None:
        """Refuse label lists that may all be n-hot.

        Raises:
            UsageError: as described.
        """
        if self._clear or not self._records:
            return
        name = self._schema.labels.name
        hint = f'labels = {{ name = "{name}", encoding = "n-hot" }} in the schema if they are n-hot, else "index"'
        raise UsageError(
            f"{name!r}: every list has {self._length} values, all 0 or 1 ({counted(self._records, 'record')}), as if a "
            f"0 or 1 for each class and not numbers of classes; write {hint}"
        )


def write_videos(path: Path, videos: Iterable[Video], schema: Schema) -> int:
    """Write videos to a new shard, atomically.

    Returns:
        The number of videos.

    Raises:
        DataError: a video that readers would refuse, or an id that occurred before; the message names the id.
        UsageError: the file exists already, or there is no video.
    """
    refuse_existing(path)
    return write_shard(path, _encoded(videos, schema))


def _encoded(videos: Iterable[Video], schema: Schema) -> Iterator[bytes]:
    seen: set[str] = set()
    for video in videos:
        if (name := same_form(video.id)) in seen:
            raise DataError("the id occurs already before; give each video its own", id=video.id)
        seen.add(name)
        yield encode(video, schema)


def id_hash(name: str) -> int:
    """Return a 64-bit hash of a record's id, which is the same for all Unicode forms of it."""
    return int.from_bytes(hashlib.blake2b(same_form(name).encode(), digest_size=8).digest(), "little")


def _without_repeats(manifest: Manifest, bad: BadRecords) -> Manifest:
    """Remove videos whose id occurred before from a manifest."""
    videos, begins = manifest.videos, manifest.first_examples
    _, firsts, of = np.unique(manifest.id_hashes, return_index=True, return_inverse=True)
    originals = firsts[of]  # first example of each id
    kept = videos[originals] == videos
    shards, counts, labelled = Shards(manifest), manifest.class_counts.copy(), manifest.labelled
    for repeat in np.flatnonzero(~kept).tolist():
        example, (path, record, offset) = shards.read(repeat), shards.location(repeat)
        if repeat == begins[videos[repeat]]:
            earlier = "record {1} of {0}".format(*shards.location(int(originals[repeat])))
            reason = f"id {shards.video(repeat).id!r} occurs already in {earlier}"
            bad.skip(DataError(reason, file=path, record=record, offset=offset))
        if example.labelled:
            labelled -= 1
            counts[example.labels] -= 1
    infos = []
    for info, (begin, end) in zip(manifest.shards, pairwise(manifest.first_records), strict=True):
        records = int(kept[begin:end].sum())
        dropped = int((~kept[begins[(begin <= begins) & (begins < end)]]).sum())
        infos.append(replace(info, records=records, left_out=info.left_out + dropped))
    columns = {name: getattr(manifest, name)[kept] for name in _COLUMNS}
    return replace(manifest, shards=tuple(infos), **columns, class_counts=counts, labelled=labelled)


class Shards:
    """Random access to the examples of a manifest; cheap to create and to send to a worker.

    Args:
        manifest: the shard set.

    Attributes:
        lengths: [N] frames of each example, cut at the schema's limit.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        rest = np.minimum(manifest.frames, manifest.schema.max_frames) - manifest.starts
        self.lengths = np.minimum(rest, manifest.schema.example_frames)
        self._first = manifest.first_records.tolist()  # bisect is faster in a list than in an array
        self._last: tuple[tuple[str, int, int], Video] | None = None  # a video's segments are often read in a row

    def __len__(self) -> int:
        return len(self.manifest)

    def location(self, index: int) -> tuple[str, int, int]:
        """Return file, record index and byte offset of an example."""
        return self._info(index).path, int(self.manifest.numbers[index]), int(self.manifest.offsets[index])

    def read(self, index: int) -> Video:
        """Read example `index` of the set.

        Raises:
            DataError: the shard changed since the manifest was made.
        """
        example = cut_example(self.video(index), self.manifest.schema, int(self.manifest.starts[index]))
        if example.length != self.lengths[index]:
            raise self._changed(index, DataError("holds another video than when the shard was indexed"))
        return example

    def video(self, index: int) -> Video:
        """Read the video of example `index`.

        Raises:
            DataError: the shard changed since the manifest was made.
        """
        place = self.location(index)
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        path, number, offset = place
        info = self._info(index)
        try:
            shard = _open_remote(info) if is_url(path) else _open(info)
            record = shard.record(offset, number)
            if record.crc != self.manifest.crcs[index]:
                raise DataError("holds another record than when the shard was indexed")
            video = decode(record.payload, self.manifest.schema, unnamed_id(path, number))
            if id_hash(video.id) != self.manifest.id_hashes[index]:
                raise DataError("holds another video than when the shard was indexed")
        except DataError as error:
            raise self._changed(index, error) from error
        if self.manifest.schema.segments:
            self._last = place, video
        return video

    def _changed(self, index: int, error: DataError) -> DataError:
        path, number, offset = self.location(index)
        again = "run again to download it again" if is_url(path) else "`touch` this one and run again"
        reason = f"{error.reason}; put back the shard that was indexed, or {again}"
        return DataError(reason, file=path, record=number, offset=offset, id=error.id)

    @property
    def are_remote(self) -> bool:
        """True if some shards are remote."""
        return any(is_url(shard.path) for shard in self.manifest.shards)

    def numbers(self, indices: Indices) -> Indices:
        """Return the shard index of each example."""
        return np.searchsorted(self._first, indices, "right") - 1

    def remote(self, indices: Indices) -> list[RemoteFile]:
        """Return the remote shards of examples, each once."""
        sources = (self.manifest.shards[number].source for number in np.unique(self.numbers(indices)))
        return [source for source in sources if isinstance(source, RemoteFile)]

    def _info(self, index: int) -> ShardInfo:
        return self.manifest.shards[bisect_right(self._first, index) - 1]


def _opened(info: ShardInfo) -> ShardFile:
    """Open a shard and check that its size is that of the manifest."""
    shard = ShardFile(info.source)
    if shard.size != info.bytes:
        raise DataError(f"the shard has {shard.size:,} bytes, but had {info.bytes:,} when it was indexed")
    return shard


_open = lru_cache(maxsize=256)(_opened)
_open_remote = lru_cache(maxsize=8)(_opened)  # open files occupy disk even after eviction from the cache


def read_examples(
    paths: Sequence[DataFile], schema: Schema, bad: BadRecords | None = None, *, labelled: bool = False
) -> Iterator[Video]:
    """Read the examples of shards in order without a manifest; ids may repeat.

    Args:
        paths: the shards, in order.
        schema: of their records.
        bad: collects bad records; by default the first is raised.
        labelled: a record without labels is bad too.

    Raises:
        DataError: a bad record that may not be left out, or a shard of which the rest cannot be found.
        UsageError: of labelled records, labels may be n-hot, and the schema does not say.
    """
    lists = LabelLists(schema)
    for path in prefetched(paths):
        for record, video in read_records(ShardFile(path), schema, bad, labelled=labelled):
            if labelled:
                lists.add(record.payload, video)
            for _, example in iter_examples(video, schema):
                yield example
    if labelled:
        lists.refuse_n_hot()


def read_shard_bytes(content: bytes, schema: Schema) -> Iterator[Video]:
    """Read the videos of a shard in memory.

    Raises:
        DataError: a record is damaged or breaks the schema.
    """
    for _, video in read_records(ShardBytes(content), schema):
        yield video
