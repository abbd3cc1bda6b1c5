"""Diversity of models: the correlation of their errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CHUNK_VALUES = 4_000_000  # float64 errors of all models that are in memory at a time


def mean_error_correlation(probabilities: Sequence[npt.NDArray[np.float32]], labels: npt.NDArray[np.bool_]) -> float:
    """Return the mean of Pearson's correlation of two models' errors, over all pairs of models.

    An error is a label, 0 or 1, minus the probability of it. All errors of N videos and C classes are one sample. The
    correlation with a model whose errors are all equal is 0.

    Args:
        probabilities: [N, C] of each of two or more models; -1 for classes without a known label, which are left out.
            They may be pages of files: a few rows are read at a time.
        labels: [N, C].
    """
    models, (videos, classes) = len(probabilities), labels.shape
    sums, products, count = np.zeros(models), np.zeros((models, models)), 0
    rows = max(1, CHUNK_VALUES // (models * classes))
    for begin in range(0, videos, rows):
        chunk = slice(begin, begin + rows)
        known = probabilities[0][chunk] >= 0
        truth = labels[chunk][known].astype(np.float64)
        errors = np.stack([truth - each[chunk][known] for each in probabilities])
        sums += errors.sum(1)
        products += errors @ errors.T
        count += errors.shape[1]
    covariances = products / count - np.outer(sums, sums) / count**2
    deviations = np.sqrt(np.diagonal(covariances).clip(min=0))
    scales = np.outer(deviations, deviations)
    correlations = np.divide(covariances, scales, out=np.zeros_like(scales), where=scales > 0)
    return float(correlations[np.triu_indices(models, 1)].mean())
