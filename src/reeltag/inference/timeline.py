"""Tags of a video and of its segments over time. The types also describe the service's responses in `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from typing_extensions import NotRequired, TypedDict

from reeltag.data.formats.example import Video

SEGMENTS = 40
FAINT = 0.1  # a score that says that nothing is there

ScoreArray = npt.NDArray[np.float32]
Tag = TypedDict("Tag", {"class": int, "name": str, "score": float})  # `class` is a word of Python's


class Timeline(TypedDict):
    """Tags over time.

    Attributes:
        segments: first frame of each, and the frame after its last.
        scores: for each tag its score in each segment.
    """

    segments: list[tuple[int, int]]
    scores: list[list[float]]


class Tagged(TypedDict):
    """Tags of a video.

    Attributes:
        id: its name.
        frames: how many were tagged.
        cut: how many beyond the model's limit were not.
        tags: the most probable classes.
        timeline: where it was asked for.
        remarks: what is unusual about a video file.
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
    """Return the classes of the highest scores [C], ties in class order, as `metrics.gap.top_k` does for a batch."""
    least = np.partition(scores, -count)[-count]
    classes = np.flatnonzero(scores >= least)
    return classes[np.argsort(-scores[classes], kind="stable")][:count]


def build_tagged(video: Video, scores: ScoreArray, top: int, label_names: Sequence[str]) -> Tagged:
    """Build the tags of a video from its scores.

    Args:
        video: the video.
        scores: [1, C], or [1 + S, C] with those of its segments, which become a timeline.
        top: how many tags, at most C.
        label_names: of the C classes.
    """
    classes = best_classes(scores[0], top)
    tags: list[Tag] = [
        {"class": c, "name": label_names[c], "score": round(score, 6)}
        for c, score in zip(classes.tolist(), scores[0, classes].tolist(), strict=True)
    ]
    found: Tagged = {"id": video.id, "frames": video.length, "cut": video.cut, "tags": tags}
    if len(scores) > 1:
        rows = scores[1:, classes].T.astype(float)
        found["timeline"] = {"segments": segment_spans(video.length), "scores": rows.round(6).tolist()}
    return found


def tag_spans(timeline: Timeline, tag: int) -> list[tuple[int, int]]:
    """Return spans of frames in which a tag has at least half of its highest score, and at least FAINT."""
    scores, found = timeline["scores"][tag], list[tuple[int, int]]()
    for (begin, end), score in zip(timeline["segments"], scores, strict=True):
        if score < max(max(scores) / 2, FAINT):
            continue
        if found and found[-1][1] == begin:
            begin = found.pop()[0]
        found.append((begin, end))
    return found
