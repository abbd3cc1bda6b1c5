"""Measure how values fit the form that stores them, and find the scale that fits them into 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reeltag.data.pca import LIMIT, Values, to_codes
from reeltag.data.schema import Storage

WARN_OUTSIDE, REFUSE_OUTSIDE = 0.01, 0.2  # share of the values that 8 bits cut off
WARN_OUTSIDE_WHITENED = 0.1  # a PCA whitens, and of normal values 4.6 % lie beyond two standard deviations
LEAST_CODES = 64
LEAST_COUNT = 1000  # of values, below which few codes say nothing
FLOAT16 = (6.1e-5, 65504.0)  # magnitudes that float16 holds with all its digits
HALF_STEP = LIMIT / 255  # half of the distance of two codes; a value so far outside loses no more than by rounding
TAIL = 0.0005  # share of the values beyond each end of a fitted scale
BULK = 0.999  # share of the values that codes in use have to hold, so that a few outliers do not count
_BINS = 1 << 16


class ValueUse:
    """Counts of how the values of a feature use the 8-bit range, or the numbers of float16."""

    def __init__(self) -> None:
        self._codes = np.zeros(256, np.int64)
        self._outside = 0
        self.largest = 0.0

    def add(self, values: Values) -> None:
        """Count values of any shape, as they are before they are stored: for 8 bits, after the PCA or scale."""
        self._codes += np.bincount(to_codes(values).ravel(), minlength=256)
        size = np.abs(values)
        self._outside += np.count_nonzero(size > LIMIT + HALF_STEP)
        self.largest = max(self.largest, float(size.max(initial=0)))

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self._codes.sum())

    @property
    def outside(self) -> float:
        """Share of the values that clipping to [-2, 2] changes by more than rounding does."""
        return self._outside / max(self.count, 1)

    @property
    def codes(self) -> int:
        """Number of codes in use: the fewest that hold 99.9 % of the values."""
        held = np.cumsum(np.sort(self._codes)[::-1])
        return int(np.searchsorted(held, BULK * self.count)) + 1

    def summary(self, storage: Storage) -> dict[str, float]:
        """Return what is counted of values that are stored in a form, as JSON."""
        if storage == "uint8":
            return {"outside": round(self.outside, 6), "codes": self.codes}
        return {"largest": self.largest}


@dataclass(frozen=True)
class Misfit:
    """Values that do not fit the form in which they are stored.

    Attributes:
        what: what is wrong, for people.
        lost: True if so much is lost that nothing should be written.
    """

    what: str
    lost: bool


def find_misfit(use: ValueUse, storage: Storage, *, whitened: bool = False, calibrated: bool = False) -> Misfit | None:
    """Judge the values of a feature; None if they fit.

    Args:
        use: counts of the values.
        storage: form in which records hold them.
        whitened: True if they went through a PCA.
        calibrated: True if few codes in use are due to the videos.
    """
    if storage == "float32":
        return None
    if storage == "float16":
        least, most = FLOAT16
        if use.largest > most or 0 < use.largest < least:
            return Misfit(f"has values up to {use.largest:.3g}, and float16 holds {least:g} to {most:,.0f}", lost=True)
        return None
    faults = []
    if use.outside > (WARN_OUTSIDE_WHITENED if whitened else WARN_OUTSIDE):
        faults.append(f"{use.outside:.1%} of its values are outside the 8-bit range and cut to its ends")
    if use.codes < LEAST_CODES and use.count >= LEAST_COUNT and not calibrated:
        faults.append(f"its values take {use.codes} of 256 codes")
    return Misfit(" and ".join(faults), use.outside > REFUSE_OUTSIDE) if faults else None


class Distribution:
    """Distribution of the values of a feature, in constant memory.

    Values are counted by the upper 16 bits of their float32 distance from the mean of the first ones. So quantiles are
    exact to 1/128 of that distance, for values of any size.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._centre: np.float32 | None = None
        self._least, self._most = math.inf, -math.inf

    def add(self, values: Values) -> None:
        """Count values of any shape."""
        if self._centre is None:
            self._centre = np.float32(values.mean(dtype=np.float64))
        bits = (values - self._centre).ravel().view(np.uint32) >> np.uint32(16)
        self._counts += np.bincount(bits, minlength=_BINS)
        self._least, self._most = min(self._least, float(values.min())), max(self._most, float(values.max()))

    def scale(self) -> tuple[float, float] | None:
        """Return the offset and scale that map all but 0.1 % of the values into [-2, 2]; None if they are all equal."""
        if self._centre is None:
            return None
        ascending = np.r_[_BINS - 1 : _BINS // 2 - 1 : -1, 0 : _BINS // 2]  # the sign is the highest bit
        held = np.cumsum(self._counts[ascending])
        low, high = np.searchsorted(held, [TAIL * held[-1], (1 - TAIL) * held[-1]], side="right").clip(0, _BINS - 1)
        lowest = max(float(self._centre) + min(_edges(ascending[low])), self._least)
        highest = min(float(self._centre) + max(_edges(ascending[high])), self._most)
        width = highest - lowest
        if width <= 1e-6 * max(abs(lowest), abs(highest)):
            return None
        # Short numbers, which are as exact as codes need, can be given as settings.
        digits = 4 - math.floor(math.log10(width))
        return round((lowest + highest) / 2, digits), float(f"{2 * LIMIT / width:.4g}")


def _edges(number: int) -> tuple[float, float]:
    """Return the ends of a bin, the one nearer to zero first."""
    near, far = np.array([number << 16, number << 16 | 0xFFFF], np.uint32).view(np.float32)
    return float(near), float(far)
