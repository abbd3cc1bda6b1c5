"""Weights of an ensemble by random search on hold-out data (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reeltag.metrics import Metrics


def random_search(
    probabilities: Sequence[Tensor], labels: Tensor, *, trials: int, seed: int
) -> tuple[list[float], float]:
    """The best of `trials` random weightings and of the equal weights, by GAP.

    Args:
        probabilities: [N, C] of each of M members on the same N hold-out videos.
        labels: [N, C] bool.
        trials: weightings to draw, uniformly from all that sum to 1.
        seed: of the draws.

    Returns:
        M weights that sum to 1, and their GAP@20 on these videos.
    """
    members = len(probabilities)
    drawn = np.random.default_rng(seed).dirichlet(np.ones(members), trials if members > 1 else 0)
    candidates = [[1 / members] * members, *drawn.tolist()]
    gaps = [ensemble_gap(probabilities, labels, weights) for weights in candidates]
    best = int(np.argmax(gaps))  # the first of equals, so that equal weights win a tie
    return candidates[best], gaps[best]


def ensemble_gap(probabilities: Sequence[Tensor], labels: Tensor, weights: Sequence[float]) -> float:
    """GAP@20 of a weighted mean."""
    mixed = torch.stack([w * p for w, p in zip(weights, probabilities, strict=True)]).sum(0)
    return Metrics.of(mixed, labels).gap()
