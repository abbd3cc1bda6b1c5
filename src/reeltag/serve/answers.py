"""Clips that are computed for a request, and the answer to it. The types also describe answers in `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import TypedDict

from reeltag.core.errors import RequestError
from reeltag.data.formats.example import Video
from reeltag.inference.timeline import ScoreArray, Tagged, build_tagged, segment_spans, split_segments
from reeltag.serve.requests import Wanted


class TaggedVideos(TypedDict):
    """Answer to a request of TFRecords."""

    videos: list[Tagged]


class Fault(TypedDict):
    """Answer to a request that was refused: the fault and the next step."""

    error: str


def clips(wanted: Wanted) -> list[Video]:
    """Return the clips to compute: each video, followed by its segments as clips if a timeline is wanted."""
    result = []
    for video in wanted.videos:
        result += [video, *split_segments(video)] if wanted.timeline else [video]
    return result


def answers(
    wanted: Wanted, scores: ScoreArray, label_names: Sequence[str], thresholds: Sequence[float] | None = None
) -> list[Tagged]:
    """Build the answer for each video of a request.

    Args:
        wanted: the request.
        scores: [N, C], probabilities of the N clips that `clips` returned.
        label_names: names of the C classes.
        thresholds: of the model [C], if it has any.

    Raises:
        RequestError: scores are NaN or infinite, because the frames have too large values.
    """
    if not np.isfinite(scores).all():
        raise RequestError(
            422, "the model's scores are not finite: are the frames on the scale that it was trained on?"
        )
    counts = [1 + (len(segment_spans(video.length)) if wanted.timeline else 0) for video in wanted.videos]
    starts = np.cumsum([0, *counts])
    return [
        build_tagged(
            video, scores[begin : begin + count], wanted.top, label_names, thresholds if wanted.thresholds else None
        )
        for video, begin, count in zip(wanted.videos, starts.tolist(), counts, strict=False)
    ]
