"""Confidence interval of a share that was counted."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Shares = npt.NDArray[np.float64]


def wilson_interval(successes: npt.ArrayLike, trials: npt.ArrayLike, confidence: float = 0.95) -> tuple[Shares, Shares]:
    """Return Wilson's interval of the probability of success.

    Args:
        successes: [...] number of successes.
        trials: [...] number of trials; without any the interval is from 0 to 1.
        confidence: share of such intervals that hold the true probability.

    Returns:
        Lower and upper ends [...].
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = np.asarray(trials, float)
    known = np.maximum(n, 1)
    share = np.asarray(successes, float) / known
    middle, width = share + z * z / (2 * known), z * np.sqrt(share * (1 - share) / known + z * z / (4 * known**2))
    whole = 1 + z * z / known
    low, high = np.clip((middle - width) / whole, 0, 1), np.clip((middle + width) / whole, 0, 1)
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)
