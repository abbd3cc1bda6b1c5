"""Limits of the service: sizes of requests and answers, time, and load."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from reeltag.core.errors import RequestError, UsageError

MAX_CLIPS = 1024  # per request, as their probabilities stay in memory until the answer
MAX_SCORES = 100_000  # in an answer, about 7 MB of JSON


@dataclass(frozen=True)
class Limits:
    """Limits that options of `reeltag serve` set.

    Attributes:
        max_batch: maximum number of videos and segments per batch.
        max_body: maximum size of a request body, in bytes.
        max_frames: maximum number of frames per request, after each video was cut at the schema's limit.
        timeout: seconds from the start of a request to its answer.
        max_waiting: maximum number of requests to `/predict` in progress.
    """

    max_batch: int
    max_body: int
    max_frames: int
    timeout: float
    max_waiting: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < math.inf:
                raise UsageError(f"{field.name.replace('_', '-')}: must be a number above 0")


def refuse_large_answer(clips: int, top: int) -> None:
    """Refuse a request whose answer would take too much memory.

    Args:
        clips: number of videos and segments.
        top: number of tags per video.

    Raises:
        RequestError: there are too many clips or scores for one request.
    """
    if clips > MAX_CLIPS:
        raise RequestError(413, f"more than {MAX_CLIPS:,} videos and segments of timelines; send fewer at a time")
    if clips * top > MAX_SCORES:
        raise RequestError(413, f"the answer would hold {clips * top:,} scores; ask for a smaller top or fewer videos")
