"""How much the service takes on at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from reeltag.core.errors import RequestError, UsageError

MAX_CLIPS = 1024  # whose probabilities a request holds in memory until it is answered
MAX_SCORES = 100_000  # in an answer, about 7 MB of JSON


@dataclass(frozen=True)
class Limits:
    """What `reeltag serve` can be told.

    Attributes:
        max_batch: videos and segments that are computed together.
        max_body: bytes of a request's body.
        max_frames: frames of all videos of a request together, after each was cut at the schema's limit.
        timeout: seconds from a request's first byte to its answer.
        max_waiting: requests to `/predict` that are read, wait or are computed at one time.
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
    """Bound what a request makes the service hold.

    Args:
        clips: videos, and segments of them.
        top: tags of each.

    Raises:
        RequestError: too much for one request.
    """
    if clips > MAX_CLIPS:
        raise RequestError(413, f"more than {MAX_CLIPS:,} videos and segments of timelines; send fewer at a time")
    if clips * top > MAX_SCORES:
        raise RequestError(413, f"the answer would hold {clips * top:,} scores; ask for a smaller top or fewer videos")
