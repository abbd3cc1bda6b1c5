"""Split a video into examples for training and tagging: the video itself, or its segments."""

from __future__ import annotations

from collections.abc import Iterator

from reeltag.core.errors import DataError
from reeltag.data.formats.example import Video
from reeltag.data.inspect import context_names
from reeltag.data.ratings import CLASSES
from reeltag.data.schema import Schema

MAX_LISTED = 20  # names of what a record has


def iter_examples(video: Video, schema: Schema, *, rated_only: bool = False) -> Iterator[tuple[int, Video]]:
    """Yield a video's examples in order, each with the index of its first frame.

    Args:
        video: from `decode`.
        schema: of the video; without `segments` the whole video is the one example.
        rated_only: of segments, only those with a rating.
    """
    if schema.segments is None:
        yield 0, video
        return
    rated = set(video.ratings.starts.tolist()) if video.ratings else set()
    for start in range(0, video.length, schema.segments):
        if start in rated or not rated_only:
            yield start, cut_example(video, schema, start)


def cut_example(video: Video, schema: Schema, start: int) -> Video:
    """Return the example that starts at a frame; a segment's id is `ID:START`, and the last one may be shorter."""
    if schema.segments is None:
        return video
    features = tuple(frames[start : start + schema.segments] for frames in video.features)
    labels, rated = (None, None) if video.ratings is None else video.ratings.at(start)
    return Video(f"{video.id}:{start}", labels, features, rated=rated)


def refuse_unlabelled(video: Video, record: bytes, schema: Schema) -> None:
    """Refuse a video without labels for its examples.

    Args:
        video: from `decode`.
        record: that it was decoded from.
        schema: of the video.

    Raises:
        DataError: the labels are missing; the message names the features of the record.
    """
    if (video.labels if schema.segments is None else video.ratings) is not None:
        return
    what, hint = f"labels: no {schema.labels.name!r}", "check the schema's 'labels'; "
    if schema.segments is not None:
        what, hint = f"ratings of segments: no {CLASSES!r}", ""
    names_present = context_names(record)
    names = ", ".join(names_present[:MAX_LISTED]) + (", …" if len(names_present) > MAX_LISTED else "")
    need = "training and evaluation need them, `reeltag predict` does not"
    raise DataError(f"has no {what}, but {names}; {hint}{need}")
