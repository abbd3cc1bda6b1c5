"""A video cut into the examples that are learnt from and tagged: itself, or segments of some frames each."""

from __future__ import annotations

from collections.abc import Iterator

from reeltag.data.example import Video
from reeltag.data.schema import Schema


def examples(video: Video, schema: Schema, *, rated_only: bool = False) -> Iterator[tuple[int, Video]]:
    """A video's examples in their order, each after the frame where it starts.

    Args:
        video: as `decode` gives it.
        schema: of the video; without `segments` the whole video is the one example.
        rated_only: of segments, only those with a rating.
    """
    if schema.segments is None:
        yield 0, video
        return
    rated = set(video.ratings.starts.tolist()) if video.ratings else set()
    for start in range(0, video.length, schema.segments):
        if start in rated or not rated_only:
            yield start, cut(video, schema, start)


def cut(video: Video, schema: Schema, start: int) -> Video:
    """The example that starts at a frame; a segment is called `ID:START`, and the last of a video may be shorter."""
    if schema.segments is None:
        return video
    features = tuple(frames[start : start + schema.segments] for frames in video.features)
    labels, rated = (None, None) if video.ratings is None else video.ratings.at(start)
    return Video(f"{video.id}:{start}", labels, features, rated=rated)


def is_labelled(video: Video, schema: Schema) -> bool:
    """Whether a video tells what its examples show."""
    return (video.labels if schema.segments is None else video.ratings) is not None
