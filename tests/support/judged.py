"""Small sets of scores and labels, and their outcomes."""

import numpy as np
import torch

from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.outcomes import Outcomes


def made(videos, classes, levels, seed):
    """Probabilities [N, C] with many ties, and labels."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (videos, classes)) / levels).astype(np.float32)
    return scores, rng.random((videos, classes)) < 0.2


def outcomes_of(scores, labels, threshold=0.5, parts=1):
    ids = [f"v{number}" for number in range(len(scores))]
    pieces = zip(*(np.array_split(each, parts) for each in (ids, scores, labels)), strict=True)
    return Outcomes.merge(
        Outcomes.of(Predictions(tuple(i), torch.from_numpy(p), torch.from_numpy(y)), threshold) for i, p, y in pieces
    )
