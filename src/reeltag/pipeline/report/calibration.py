"""Calibration of tag probabilities: reliability bins and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.inference.metrics.outcomes import CALIBRATION_BINS
from reeltag.pipeline.report.results import Calibration, rounded


def calibration(scores: npt.NDArray[np.floating[Any]], hits: npt.NDArray[np.bool_]) -> Calibration:
    """Compare the probabilities of tags with how often they are correct.

    Args:
        scores: probabilities of tags, in an array of any shape.
        hits: array of the same shape; True where the tag is a label.

    Returns:
        `bins`: `count`, mean `score` and `share` of hits of each bin that holds scores. `ece`: the expected
        calibration error, the mean of |score - share| weighted by count (Guo et al. 2017, section 2).
    """
    indices = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1).ravel()
    counts = np.bincount(indices, minlength=CALIBRATION_BINS)
    sums = np.bincount(indices, scores.ravel().astype(float), CALIBRATION_BINS)
    correct = np.bincount(indices, hits.ravel(), CALIBRATION_BINS)
    return {
        "bins": [
            {"count": int(count), "score": rounded(total / count), "share": rounded(right / count)}
            for count, total, right in zip(counts, sums, correct, strict=True)
            if count
        ],
        "ece": rounded(np.abs(sums - correct).sum() / scores.size),
    }
