"""Diversity of models: the correlation of their errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def mean_error_correlation(parts: Iterable[tuple[Sequence[Tensor], Tensor]]) -> float:
    """Return the mean of Pearson's correlation of two models' errors, over all pairs of models.

    An error is a label, 0 or 1, minus the probability of it. All errors of N videos and C classes are one sample. The
    correlation with a model whose errors are all equal is 0.

    Args:
        parts: some of the videos at a time: probabilities [n, C] of each of two or more models, with -1 for classes
            without a known label, which are left out; and labels [n, C].
    """
    sums, products, count = np.zeros(()), np.zeros(()), 0
    for probabilities, labels in parts:
        known = probabilities[0] >= 0
        truth = labels[known].double()
        errors = torch.stack([truth - each[known] for each in probabilities]).numpy()
        sums = sums + errors.sum(1)
        products = products + errors @ errors.T
        count += errors.shape[1]
    covariances = products / count - np.outer(sums, sums) / count**2
    deviations = np.sqrt(np.diagonal(covariances).clip(min=0))
    scales = np.outer(deviations, deviations)
    correlations = np.divide(covariances, scales, out=np.zeros_like(scales), where=scales > 0)
    return float(correlations[np.triu_indices(len(sums), 1)].mean())
