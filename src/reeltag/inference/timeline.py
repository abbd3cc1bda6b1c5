"""Tags of a video and of its segments over time.

These types also describe the service's responses in `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from typing_extensions import NotRequired, TypedDict

from reeltag.data.formats.example import Video

SEGMENTS = 40  # most segments of a timeline
FAINT = 0.1  # a tag with a lower score counts as absent

ScoreArray = npt.NDArray[np.float32]
Tag = TypedDict(
    "Tag", {"class": int, "name": str, "score": float}
)  # `class` is a keyword, so no class body can declare it


class Timeline(TypedDict):
    """Tags over time.

    Attributes:
        segments: index of the first frame of each segment, and of the frame after its last.
        scores: for each tag, its score in each segment.
    """

    segments: list[tuple[int, int]]
    scores: list[list[float]]


class Tagged(TypedDict):
    """Tags of a video.

    Attributes:
        id: name of the video.
        frames: number of frames that were tagged.
        cut: number of frames beyond the model's limit, which were left out.
        tags: the most probable classes, in descending order of score.
        timeline: scores of the tags over time, if requested.
        remarks: peculiarities of a video file, such as a missing sound track.
    """

    id: str
    frames: int
    cut: int
    tags: list[Tag]
    timeline: NotRequired[Timeline]
    remarks: NotRequired[list[str]]


def segment_spans(length: int) -> list[tuple[int, int]]:
    """Split a length in frames into at most 40 segments whose lengths differ by at most one frame."""
    count = min(SEGMENTS, length)
    return [(number * length // count, (number + 1) * length // count) for number in range(count)]


def split_segments(video: Video) -> list[Video]:
    """Return the segments of a video as videos of their own."""
    spans = segment_spans(video.length)
    return [replace(video, features=tuple(part[begin:end] for part in video.features)) for begin, end in spans]


def best_classes(scores: ScoreArray, count: int) -> npt.NDArray[np.int64]:
    """Return the classes of the highest scores [C], ties in class order, as `video_metrics.top_k` does for a batch."""
    least = np.partition(scores, -count)[-count]
    classes = np.flatnonzero(scores >= least)
    return classes[np.argsort(-scores[classes], kind="stable")][:count]


def build_tagged(
    video: Video, scores: ScoreArray, top: int, label_names: Sequence[str], least: Sequence[float] | None = None
) -> Tagged:
    """Build the tags of a video from its scores.

    Args:
        video: the video.
        scores: [1, C], or [1 + S, C] with those of its segments, which become a timeline.
        top: number of tags, at most C.
        label_names: names of the C classes.
        least: least score [C] of a tag of each class; by default all are shown.
    """
    classes = best_classes(scores[0], top)
    if least is not None:
        classes = classes[scores[0, classes] >= np.asarray(least, np.float32)[classes]]
    tags: list[Tag] = [
        {"class": c, "name": label_names[c], "score": round(score, 6)}
        for c, score in zip(classes.tolist(), scores[0, classes].tolist(), strict=True)
    ]
    tagged: Tagged = {"id": video.id, "frames": video.length, "cut": video.cut, "tags": tags}
    if len(scores) > 1:
        rows = scores[1:, classes].T.astype(float)
        tagged["timeline"] = {"segments": segment_spans(video.length), "scores": rows.round(6).tolist()}
    return tagged


def tag_spans(timeline: Timeline, tag: int) -> list[tuple[int, int]]:
    """Return spans of frames in which a tag has at least half of its highest score, and at least `FAINT`."""
    scores, spans = timeline["scores"][tag], list[tuple[int, int]]()
    for (begin, end), score in zip(timeline["segments"], scores, strict=True):
        if score < max(max(scores) / 2, FAINT):
            continue
        if spans and spans[-1][1] == begin:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return spans
