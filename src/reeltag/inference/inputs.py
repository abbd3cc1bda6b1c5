"""Check arrays of frames against a model's schema, and refuse videos where features are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import UsageError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import Patterns, as_strings, match_paths
from reeltag.data.formats.example import MAX_VALUE, is_computable
from reeltag.data.formats.kinds import TEXT, recognise
from reeltag.data.schema import Schema
from reeltag.data.sources.files import list_files
from reeltag.data.video.dataset import ENDINGS


def as_frames(frames: npt.ArrayLike) -> npt.NDArray[Any]:
    """Convert frames of one video [T, D] or of several [B, T, D] to an array.

    Raises:
        UsageError: they have another number of dimensions, or are not an array.
    """
    try:
        array = np.asarray(frames)
    except ValueError as error:
        how = "`predict_each` takes videos of different lengths"
        raise UsageError(f"frames are not an array ({error}); {how}") from error
    if array.ndim not in (2, 3):
        how = "give [T, D] of one video, or [B, T, D] of several; `predict_each` takes videos of different lengths"
        raise UsageError(f"frames are {list(array.shape)}: {how}")
    return array


def check_frames(frames: npt.NDArray[Any], lengths: npt.NDArray[Any], schema: Schema) -> None:
    """Refuse frames [B, T, D] and lengths [B] that a model of this schema does not read.

    Raises:
        UsageError: wrong shape, dtype or length, no frames, or values that are not finite.
    """
    if frames.ndim != 3 or frames.shape[2] != schema.width or frames.dtype != schema.dtype:
        expected = f"[B, T, {schema.width}] {schema.dtype}"
        how = ""
        if frames.dtype.kind == "f" and schema.dtype == "uint8":
            how = ", codes of values from -2 to 2, as `reeltag.data.pca.to_codes(frames)` makes them"
        elif frames.dtype.kind == "f" and frames.dtype != schema.dtype:
            how = f"; give frames.astype('{schema.dtype}')"
        raise UsageError(f"frames are {list(frames.shape)} {frames.dtype}; this model reads {expected}{how}")
    if 0 in frames.shape:
        raise UsageError(f"frames are {list(frames.shape)}: there must be at least one video with one frame")
    if (
        lengths.shape != frames.shape[:1]
        or lengths.dtype.kind not in "iu"
        or lengths.min() < 1
        or lengths.max() > frames.shape[1]
    ):
        raise UsageError(f"lengths must be {len(frames)} whole numbers from 1 to {frames.shape[1]}")
    if schema.segments is not None and frames.shape[1] > schema.segments:
        raise UsageError(
            f"frames are {list(frames.shape)}: this model tags segments of {schema.segments} frames; "
            "cut videos into those, as `reeltag predict` does with shards"
        )
    if not is_computable(frames):
        raise UsageError(f"frames hold NaN or infinite values, or some beyond ±{MAX_VALUE:g}")


def refuse_videos(patterns: Patterns) -> None:
    """Refuse files of video or sound, and folders of them, where shards or other features are expected.

    Args:
        patterns: paths, URLs or glob patterns; the first match of each tells.

    Raises:
        UsageError: one of them is a video.
    """
    step = "tag videos with `reeltag tag`, or give the features that `reeltag extract` makes of them"
    for pattern in as_strings(patterns):
        for match in [] if is_url(pattern) else match_paths(Path(), pattern)[:1]:
            files = list_files([match])
            if not any(file.suffix.lower() in ENDINGS for file in files):
                continue
            if {recognise(file) for file in files if file.is_file()} <= {None, TEXT}:
                raise UsageError(f"{match}: {'is a folder of videos' if match.is_dir() else 'is a video'}; {step}")
