"""Import features from files that are not shards, to shards with a manifest and a recipe.

Videos keep the order of their source, and a shard ends before the record that would make it larger than `SHARD_BYTES`.
So the bytes of the shards depend on the videos alone, and not on the kind of file, on workers or on interruptions.
Finished shards are kept in the folder `OUT.parts`, each with a marker that says after which video the source goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from reeltag.core.errors import DataError, UsageError
from reeltag.core.progress import Progress
from reeltag.core.storage import read_json, write_json
from reeltag.core.text import counted, first_lines
from reeltag.data.formats.example import Video, encode_pieces
from reeltag.data.formats.tfrecord import ShardWriter
from reeltag.data.label_table import LabelTable
from reeltag.data.schema import Schema
from reeltag.data.shards import id_hash
from reeltag.data.sources.parallel import read_parts
from reeltag.data.sources.records import NO_RATINGS, to_video
from reeltag.data.sources.videos import Source, SourceVideo

SHARD_BYTES = 100_000_000  # most of a shard, unless one record is larger

Split = Literal["train", "test"]
Unlabelled = Literal["fail", "skip", "keep"]


class Position(NamedTuple):
    """Place of a video: the input, its part, and the video in the part, from 0."""

    input: int = 0
    part: int = 0
    number: int = 0


@dataclass(frozen=True)
class Input:
    """A source and the split of its videos.

    Attributes:
        source: of the videos.
        test_share: fraction of the videos that become test videos, by a hash of their ids; 0 for a training set, and 1
            for a test set.
    """

    source: Source
    test_share: float = 0.0

    @property
    def splits(self) -> list[Split]:
        """Splits that videos of this input may belong to."""
        chosen: dict[Split, bool] = {"train": self.test_share < 1, "test": self.test_share > 0}
        return [name for name, wanted in chosen.items() if wanted]

    def split(self, name: str) -> Split:
        """Return the split of a video by its id; adding videos moves no other video."""
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return "test" if draw < self.test_share * 2**64 else "train"


@dataclass
class ShardCounts:
    """Contents of a shard.

    Attributes:
        videos: number of its videos.
        labelled: number of its videos with labels.
        skipped: number of videos without labels that were left out since the shard before.
        most_frames: largest number of frames of a video.
        zero_ended: number of videos whose last frame is zero in all features, as that of padding.
        labels: classes that occur, sorted.
        ids: 64-bit hashes of the videos' ids.
        after: position of the last video.
    """

    videos: int = 0
    labelled: int = 0
    skipped: int = 0
    most_frames: int = 0
    zero_ended: int = 0
    labels: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    after: Sequence[int] = ()


class SplitWriter:
    """Shards of one split: those that are finished, and the one that is written.

    Args:
        folder: of the shards.
        split: of their videos.
        pool: closes a shard while the next is written, since a disk takes its time.
    """

    def __init__(self, folder: Path, split: Split, pool: Executor) -> None:
        self.folder, self.split, self._pool = folder, split, pool
        self._closing: Future[None] | None = None
        self._shard: ShardWriter | None = None
        self.finished: list[ShardCounts] = []
        while (marker := self._marker()).is_file():
            self.finished.append(ShardCounts(**read_json(marker)))
        self._begin()

    @property
    def skipped(self) -> int:
        """Number of videos without labels that were left out."""
        return sum(counts.skipped for counts in (*self.finished, self._counts))

    @property
    def shards(self) -> list[Path]:
        """Finished shards, in order."""
        return [self._path(number) for number in range(len(self.finished))]

    def includes(self, position: Position) -> bool:
        """Return True if the video at a position was handled before the last finished shard ended."""
        return bool(self.finished) and position <= Position(*self.finished[-1].after)

    def parts_done(self, number: int, total: int) -> int:
        """Return how many of an input's parts are wholly in finished shards.

        Args:
            number: of the input.
            total: number of its parts.
        """
        last = Position(*self.finished[-1].after) if self.finished else Position(-1)
        return total if last.input > number else last.part if last.input == number else 0

    def add(self, position: Position, video: Video, schema: Schema) -> None:
        """Write a video, into the next shard if this one is full.

        Raises:
            UsageError: the shard cannot be written.
        """
        record = encode_pieces(video, schema)
        if self._shard is not None and self._shard.size + sum(map(len, record)) > SHARD_BYTES:
            self.finish()
        if self._shard is None:
            self._shard = ShardWriter(self._path(len(self.finished)))
        self._shard.append(*record)
        counts = self._counts
        counts.videos += 1
        counts.labelled += video.labels is not None
        counts.most_frames = max(counts.most_frames, video.length)
        counts.zero_ended += not any(values[-1].any() for values in video.features)
        counts.ids.append(id_hash(video.id))
        self._labels.update([] if video.labels is None else video.labels.tolist())
        counts.after = position

    def skip(self) -> None:
        """Count a video without labels that is left out."""
        self._counts.skipped += 1

    def finish(self) -> None:
        """Begin to close the shard that has records, if there is one, once the one before is closed.

        Raises:
            UsageError: the shard before could not be written.
        """
        self.settle()
        if self._shard is not None:
            self._counts.labels = sorted(self._labels)
            self._closing = self._pool.submit(_close, self._shard, self._marker(), self._counts)
            self.finished.append(self._counts)
            self._begin()

    def settle(self) -> None:
        """Wait until all finished shards are on the disk.

        Raises:
            UsageError: one could not be written.
        """
        if self._closing is not None:
            self._closing.result()

    def _begin(self) -> None:
        self._shard = None
        self._labels: set[int] = set()
        self._counts = ShardCounts()

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05}.tfrecord"

    def _marker(self) -> Path:
        return self._path(len(self.finished)).with_suffix(".json")


def _close(shard: ShardWriter, marker: Path, counts: ShardCounts) -> None:
    shard.close()
    write_json(marker, vars(counts))


def write_shards(
    inputs: Sequence[Input],
    schema: Schema,
    labels: LabelTable | None,
    folder: Path,
    *,
    unlabelled: Unlabelled = "fail",
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[Split, SplitWriter]:
    """Write the shards of videos, and go on after those that were finished before.

    Args:
        inputs: the sources.
        schema: of the records.
        labels: labels by id; None if no video has any.
        folder: of the shards `SPLIT-NUMBER.tfrecord` and their markers.
        unlabelled: a video without labels is refused, left out, or written without labels.
        workers: number of processes that read the sources.
        progress: reports progress.

    Returns:
        The shards of each split that the inputs have.

    Raises:
        DataError: a video cannot be read, does not fit the schema, has an id that occurred before, or has no labels.
        UsageError: a shard cannot be written, or labels were not looked for and a video has some.
    """
    with ThreadPoolExecutor(1) as pool:
        splits = sorted({name for each in inputs for name in each.splits})
        writers = {name: SplitWriter(folder, name, pool) for name in splits}
        seen = {each for writer in writers.values() for shard in writer.finished for each in shard.ids}
        missing: list[str] = []
        for position, found in _videos(inputs, writers, workers, folder, progress or Progress()):
            writer = writers[inputs[position.input].split(found.id)]
            if writer.includes(position):
                continue
            if (digest := id_hash(found.id)) in seen:
                raise DataError(f"id {found.id!r} occurs already before; give each video its own", file=found.place)
            seen.add(digest)
            if labels is None and found.labels is not None:
                what = "has labels beside its features, although the first video has none"
                raise UsageError(f"{found.place}: {what}; begin with one that has labels, or give a file of labels")
            known = None if labels is None else labels.of(found.id)
            if known is None and unlabelled == "fail":
                missing.append(f"{found.place}: {found.id!r}")
            elif known is None and unlabelled == "skip":
                writer.skip()
            elif not missing:  # the rest is only counted
                rated = NO_RATINGS if labels is None else labels.ratings_of(found.id)
                writer.add(position, to_video(found, schema, known, rated), schema)
        if missing:
            raise _without_labels(missing, labels)
        for writer in writers.values():
            writer.finish()
            writer.settle()
    return writers


def padding_remarks(writers: Mapping[Split, SplitWriter], level: str) -> Iterator[str]:
    """Yield how many videos end with a frame of zeros, which padding would look like, if any does.

    Args:
        writers: shards of each split.
        level: of the features, as in the schema; a video-level one has no padding.
    """
    ended = sum(counts.zero_ended for writer in writers.values() for counts in writer.finished)
    if ended and level == "frame":
        yield f"{counted(ended, 'video')} with zeros as the last frame; if that is padding, store numbers of frames"


def _without_labels(missing: Sequence[str], labels: LabelTable | None) -> UsageError:
    of_table = (
        "no labels were given" if labels is None else f"the labels name {next(iter(labels.labels))!r}, for example"
    )
    what = f"{counted(len(missing), 'video')} without labels ({of_table})"
    hint = "add them, or leave these videos out: --unlabelled skip of an import, data.max_bad_records of a recipe"
    return UsageError("\n  ".join([f"{what}; {hint}", *first_lines(missing)]))


def _videos(
    inputs: Sequence[Input], writers: Mapping[Split, SplitWriter], workers: int, folder: Path, progress: Progress
) -> Iterator[tuple[Position, SourceVideo]]:
    """Yield the videos of all inputs, but those of parts that are wholly in finished shards."""
    parts = [each.source.parts() for each in inputs]
    done = [
        min(writers[name].parts_done(number, len(names)) for name in each.splits)
        for number, (each, names) in enumerate(zip(inputs, parts, strict=True))
    ]
    videos = 0
    with progress.task("import", sum(map(len, parts)), "parts") as task:
        task.resume_at(sum(done))
        for number, (each, names) in enumerate(zip(inputs, parts, strict=True)):
            part = begin = done[number]
            for now, index, video in read_parts(each.source, names[begin:], workers, folder):
                videos += 1
                task.advance(begin + now - part, note=counted(videos, "video"))
                part = begin + now
                yield Position(number, part, index), video
            task.advance(len(names) - part)
