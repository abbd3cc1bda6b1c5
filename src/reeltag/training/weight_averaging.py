"""Exponential moving average of weights during training (paper section 4.1, golden `ema`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def averaged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are averaged: weights and batch-norm statistics, but not counters."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


class WeightAverage:
    """Exponential moving average s ← d·s + (1−d)·w with d = 1 − 1/time_constant.

    Args:
        tensors: weights to start from, by name.
        time_constant: number of steps; published 2000 and 3000.
    """

    def __init__(self, tensors: dict[str, Tensor], time_constant: int) -> None:
        self.weight = 1 / time_constant
        self.shadow = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Move the average towards the weights after a training step."""
        for name, average in self.shadow.items():
            average.lerp_(tensors[name], self.weight)
