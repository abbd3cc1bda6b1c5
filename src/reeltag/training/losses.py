"""The loss for training and distillation."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5


def cross_entropy(probabilities: Tensor, targets: Tensor, rated: Tensor | None = None) -> Tensor:
    """Return the cross-entropy, summed over classes and averaged over videos (golden `losses`).

    Args:
        probabilities: [B, C] in [0, 1], float32.
        targets: [B, C], labels (bool) or soft targets.
        rated: [B, C] bool, classes with a known label, as the challenge's `label_weights`; all by default.

    Returns:
        A scalar; 1e-5 inside each log keeps it finite.
    """
    targets = targets.float()
    present = targets * (probabilities + EPSILON).log()
    absent = (1 - targets) * (1 - probabilities + EPSILON).log()
    terms = present + absent
    return -(terms if rated is None else terms * rated).sum(1).mean()


def distillation_targets(labels: Tensor, teacher: Tensor, label_weight: float) -> Tensor:
    """Return λ·labels + (1 − λ)·teacher (paper section 3.1).

    Cross-entropy is linear in its targets, so mixing targets mixes the losses.

    Args:
        labels: [B, C] bool.
        teacher: [B, C] probabilities.
        label_weight: λ; the authors' program lets λ weigh the teacher's term instead.
    """
    return torch.lerp(teacher, labels.float(), label_weight)
