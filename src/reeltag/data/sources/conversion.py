"""The rule for the values of features, whatever file they come from: uint8 codes or float32 values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import DataError
from reeltag.data.formats.example import MAX_VALUE, is_computable

Array = npt.NDArray[Any]


def to_feature(values: Array, name: str, place: str) -> Array:
    """Convert the values of one feature to a contiguous array [T, D] or [D].

    uint8 stays uint8. Floats of any width become float32.

    Args:
        values: as stored.
        name: of the feature, for messages.
        place: of the video, for messages.

    Raises:
        DataError: masked values, another dtype, no frames, no values, NaN, or a value beyond ±`MAX_VALUE`.
    """
    if np.ma.is_masked(values):
        raise DataError(f"{name!r} has masked values; fill them, or leave the video out", file=place)
    if values.ndim not in (1, 2):
        raise DataError(f"{name!r} is {list(values.shape)}; expected [T, D] or [D] for a video", file=place)
    if not values.size:
        what = "has 0 frames" if len(values) == 0 else f"is {list(values.shape)}, without values"
        raise DataError(f"{name!r} {what}; leave the video out", file=place)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        how = "objects or ragged lists" if values.dtype.kind == "O" else str(values.dtype)
        raise DataError(f"{name!r} holds {how}; store uint8 codes or floats", file=place)
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)  # before its values are compared: float16 cannot hold MAX_VALUE
    if not is_computable(values):
        wrong = ~(np.abs(values) <= MAX_VALUE)
        where = f"frame {int(np.argwhere(wrong)[0][0])}" if values.ndim == 2 else "the vector"
        reason = f"{where} of {name!r} holds NaN or infinite values, or some beyond ±{MAX_VALUE:g}"
        raise DataError(f"{reason}; correct it or leave the video out", file=place)
    return np.ascontiguousarray(values, np.float32)
