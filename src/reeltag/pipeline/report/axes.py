"""Axes of charts: the range that the values need, and the ticks with their labels, on linear and logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MIN_LOG_TICKS = 4  # a logarithmic axis with fewer ticks takes the next, finer set of multiples
LOG_MULTIPLES = ((1,), (1, 2, 5), (1, 2, 3, 4, 6, 8))  # of powers of ten
MARGIN = 1.15  # factor by which a logarithmic axis goes beyond the values on both sides


@dataclass(frozen=True)
class Axis:
    """Range of an axis, and the values to label.

    Attributes:
        low, high: values at its two ends.
        ticks: values that get a label, all within the range.
        log: True if the scale is logarithmic.
    """

    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def fraction(self, value: float) -> float:
        """Return the position of a value on the axis: 0 at the low end, 1 at the high end."""
        scale: Callable[[float], float] = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def labels(self) -> list[str]:
        """Return the text of each tick; equally spaced ticks all have as many decimals as the longest needs."""
        shortest = [f"{value:.6g}" for value in self.ticks]
        if len({round(b - a, 9) for a, b in pairwise(self.ticks)}) != 1:
            return shortest
        decimals = max(len(text.partition(".")[2]) for text in shortest if "e" not in text)
        return [f"{value:.{decimals}f}" for value in self.ticks]


def linear_axis(values: Sequence[float], steps: int) -> Axis:
    """Return a linear axis from the tick below the smallest value to the tick above the largest."""
    ticks = linear_ticks(*_spread(values), steps)
    return Axis(ticks[0], ticks[-1], ticks)


def tight_axis(values: Sequence[float], steps: int) -> Axis:
    """Return a linear axis that ends at the largest value and starts at the smallest, or at 0 if 0 is near."""
    low, high = _spread(values)
    low = 0.0 if 0 < low < (high - low) / 10 else low
    return Axis(low, high, [value for value in linear_ticks(low, high, steps) if low <= value <= high])


def log_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis with a margin on both sides; the values are positive."""
    low, high = min(values) / MARGIN, max(values) * MARGIN
    return Axis(low, high, log_ticks(low, high), log=True)


def linear_ticks(low: float, high: float, steps: int) -> list[float]:
    """Return multiples of 1, 2 or 5 × 10ⁿ that cover the range in about so many steps."""
    ideal = (high - low) / steps
    power = math.floor(math.log10(ideal))
    candidates = [float(f"{digit}e{power + more}") for more in (0, 1) for digit in (1, 2, 5)]
    step = min(candidates, key=lambda candidate: abs(math.log(candidate / ideal)))
    return [n * step for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the values to label on a logarithmic axis: powers of ten, and more multiples the shorter the axis is."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in LOG_MULTIPLES:
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        ticks = [value for value in ticks if low <= value <= high]
        if len(ticks) >= MIN_LOG_TICKS:
            return ticks
    return [value for value in linear_ticks(low, high, 6) if low <= value <= high]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest value, moved apart if they are equal."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - abs(low) / 10 - 1e-6, high + abs(high) / 10 + 1e-6)
