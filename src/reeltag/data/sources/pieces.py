"""Read features that are not shards as a stream of a model's examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reeltag.core.errors import DataError
from reeltag.core.storage import content_hash, file_identity
from reeltag.data.formats.example import Video
from reeltag.data.formats.kinds import NPY, recognise
from reeltag.data.label_table import LabelTable
from reeltag.data.schema import Schema
from reeltag.data.segments import iter_examples
from reeltag.data.sources.files import list_files, open_files
from reeltag.data.sources.records import NO_RATINGS, to_video
from reeltag.data.sources.videos import Source

MOST, LEAST_BYTES = 256, 4_000_000  # pieces of a source, and the size of a piece


@dataclass(frozen=True)
class Piece:
    """Some consecutive parts of a source, which take the place of a shard.

    Attributes:
        source: of the parts.
        parts: their names.
        size: their share of the source's bytes, for progress.
        identity: what identifies the source's files and their state, as JSON.
    """

    source: Source
    parts: tuple[str, ...]
    size: int
    identity: tuple[Any, ...]

    def __str__(self) -> str:
        return self.parts[0] or self.source.kind


def open_features(paths: Sequence[Path], schema: Schema) -> Source:
    """Open what `find_features` returned, to read the features of a schema.

    Raises:
        UsageError: there is no file of features, or there are several kinds.
    """
    unnamed = recognise(next(path for path in list_files(paths) if not path.name.startswith("."))) == NPY
    return open_files(paths, () if unnamed else [feature.name for feature in schema.features])


def pieces(paths: Sequence[Path], schema: Schema) -> list[Piece]:
    """Return the pieces of features that `find_features` returned, to be read one by one.

    Raises:
        UsageError: there is no file of features, or there are several kinds.
    """
    source, files = open_features(paths, schema), list_files(paths)
    state, size = content_hash(list(map(file_identity, files))), sum(file.stat().st_size for file in files)
    parts = tuple(source.parts())
    step = -(-len(parts) // min(MOST, size // LEAST_BYTES + 1))
    groups = [parts[begin : begin + step] for begin in range(0, len(parts), step)]
    return [Piece(source, group, size * len(group) // len(parts), (state, group)) for group in groups]


def read_piece(piece: Piece, schema: Schema, labels: LabelTable | None = None) -> Iterator[Video]:
    """Yield the examples of a piece in order.

    Args:
        piece: of a source.
        schema: of the examples.
        labels: of the videos; a video without labels is an error if they are given.

    Raises:
        DataError: a video cannot be read, does not fit the schema, or has no labels.
    """
    for part in piece.parts:
        for found in piece.source.read(part):
            known = None if labels is None else labels.of(found.id)
            if labels is not None and known is None:
                raise DataError(
                    f"the labels do not have {found.id!r}; add it, or leave the video out", file=found.place
                )
            rated = NO_RATINGS if labels is None else labels.ratings_of(found.id)
            video = to_video(found, schema, known, rated)
            if video.length > schema.max_frames:
                features = tuple(frames[: schema.max_frames] for frames in video.features)
                video = replace(video, features=features, cut=video.length - schema.max_frames)
            for _, example in iter_examples(video, schema):
                yield example
