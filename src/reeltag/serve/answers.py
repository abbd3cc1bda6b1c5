"""What is computed for a request, and what it is answered. The types also describe answers at `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from typing_extensions import NotRequired, TypedDict

from reeltag.data.example import Video
from reeltag.errors import RequestError
from reeltag.serve.batching import Scores
from reeltag.serve.requests import Wanted

SEGMENTS = 40

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
    """What is said of a video.

    Attributes:
        id: as in the request.
        frames: how many were tagged.
        cut: how many beyond the model's limit were not.
        tags: the most probable classes.
        timeline: where it was asked for.
    """

    id: str
    frames: int
    cut: int
    tags: list[Tag]
    timeline: NotRequired[Timeline]


class TaggedVideos(TypedDict):
    """What is said of each record."""

    videos: list[Tagged]


class Fault(TypedDict):
    """What is wrong with a request, and what to do."""

    error: str


def segments(length: int) -> list[tuple[int, int]]:
    """Begin and end of at most 40 segments of equal length, or a frame more."""
    count = min(SEGMENTS, length)
    return [(number * length // count, (number + 1) * length // count) for number in range(count)]


def clips(wanted: Wanted) -> list[Video]:
    """What is computed: each video, followed by its segments as videos of their own where there is to be a timeline."""
    found = []
    for video in wanted.videos:
        found.append(video)
        if wanted.timeline:
            spans = segments(video.length)
            found += [replace(video, features=tuple(part[a:b] for part in video.features)) for a, b in spans]
    return found


def best_classes(scores: Scores, count: int) -> npt.NDArray[np.int64]:
    """The classes of the highest scores [C], equal ones in class order, as `metrics.top_k` finds them for a batch."""
    least = np.partition(scores, -count)[-count]
    classes = np.flatnonzero(scores >= least)
    return classes[np.argsort(-scores[classes], kind="stable")][:count]


def answers(wanted: Wanted, scores: Scores, label_names: Sequence[str]) -> list[Tagged]:
    """What is said of each video.

    Args:
        wanted: the request.
        scores: [N, C], probabilities of its clips.
        label_names: of the C classes.

    Raises:
        RequestError: the values are so large that the model computed no number.
    """
    if not np.isfinite(scores).all():
        raise RequestError(
            422, "the model's scores are not finite: are the frames on the scale that it was trained on?"
        )
    spans = [segments(video.length) if wanted.timeline else [] for video in wanted.videos]
    places = np.cumsum([0, *(1 + len(each) for each in spans)])
    result = []
    for number, video in enumerate(wanted.videos):
        whole = scores[places[number]]
        classes = best_classes(whole, wanted.top)
        tags: list[Tag] = [
            {"class": c, "name": label_names[c], "score": round(score, 6)}
            for c, score in zip(classes.tolist(), whole[classes].tolist(), strict=True)
        ]
        tagged: Tagged = {"id": video.id, "frames": video.length, "cut": video.cut, "tags": tags}
        if wanted.timeline:
            rows = scores[places[number] + 1 : places[number + 1], classes].T.astype(float)
            tagged["timeline"] = {"segments": spans[number], "scores": rows.round(6).tolist()}
        result.append(tagged)
    return result
