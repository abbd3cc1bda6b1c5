"""What is computed for a request, and what it is answered. The types also describe answers at `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import TypedDict

from reeltag.core.errors import RequestError
from reeltag.data.formats.example import Video
from reeltag.inference.timeline import ScoreArray, Tagged, build_tagged, segment_spans, split_segments
from reeltag.serve.requests import Wanted


class TaggedVideos(TypedDict):
    """What is said of each record."""

    videos: list[Tagged]


class Fault(TypedDict):
    """What is wrong with a request, and what to do."""

    error: str


def clips(wanted: Wanted) -> list[Video]:
    """What is computed: each video, followed by its segments as videos of their own where there is to be a timeline."""
    found = []
    for video in wanted.videos:
        found += [video, *split_segments(video)] if wanted.timeline else [video]
    return found


def answers(wanted: Wanted, scores: ScoreArray, label_names: Sequence[str]) -> list[Tagged]:
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
    counts = [1 + (len(segment_spans(video.length)) if wanted.timeline else 0) for video in wanted.videos]
    places = np.cumsum([0, *counts])
    return [
        build_tagged(video, scores[begin : begin + count], wanted.top, label_names)
        for video, begin, count in zip(wanted.videos, places.tolist(), counts, strict=False)
    ]
