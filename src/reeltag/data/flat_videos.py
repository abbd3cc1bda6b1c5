"""Detect the challenge's fake test videos by the rule of the authors' `remove_test_fakes.py`: a flat mean frame."""

from __future__ import annotations

import numpy as np

from reeltag.core.errors import UsageError
from reeltag.data.formats.example import Video
from reeltag.data.schema import Schema

RGB = ("rgb", "mean_rgb")  # what YouTube-8M calls it, by frame and by video
MAX_FLAT_DEVIATION = 0.1
_STEP = 4 / 255  # between the values of two codes, as in models.layers.dequantize


def rgb_feature_index(schema: Schema) -> int:
    """Return the index of the image feature in a schema.

    Raises:
        UsageError: there is none, or the examples are segments, which may be flat in any video.
    """
    if schema.segments is not None:
        raise UsageError(
            "drop_flat: detects fake videos by all their frames, but the model tags segments; leave it out"
        )
    names = [feature.name for feature in schema.features]
    place = next((names.index(name) for name in RGB if name in names), None)
    if place is None:
        raise UsageError(
            f"drop_flat: needs a feature {' or '.join(RGB)}; the model reads {', '.join(names)}, so leave it out"
        )
    return place


def is_flat(video: Video, place: int) -> bool:
    """Return True if a feature's dequantised mean frame has a population standard deviation of at most 0.1."""
    frames = video.features[place]
    # An integer sum is exact, and dequantisation's constant offset does not change the deviation.
    mean = frames.sum(0, dtype=np.uint32 if frames.dtype == np.uint8 else np.float64) / len(frames)
    return bool(mean.std() * (_STEP if frames.dtype == np.uint8 else 1) <= MAX_FLAT_DEVIATION)
