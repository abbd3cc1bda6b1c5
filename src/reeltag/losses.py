"""The loss that the paper trains with."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-5


def cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over classes and averaged over videos (golden `losses`).

    Args:
        probabilities: [B, C] in [0, 1], float32.
        targets: [B, C], labels (bool) or soft targets.

    Returns:
        A scalar; 1e-5 inside each log keeps it finite.
    """
    targets = targets.float()
    present = targets * (probabilities + EPSILON).log()
    absent = (1 - targets) * (1 - probabilities + EPSILON).log()
    return -(present + absent).sum(1).mean()
