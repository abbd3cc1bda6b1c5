"""Averages of weights: exponential over a training (paper section 4.1, golden `ema`), and plain over checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def averaged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that are averaged: weights and batch-norm statistics, but no counters."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


class WeightAverage:
    """Shadow copy s ← d·s + (1−d)·w with d = 1 − 1/time_constant, starting at the weights it is given.

    Args:
        tensors: the weights at the start, by name.
        time_constant: in steps; published 2000 and 3000.
    """

    def __init__(self, tensors: dict[str, Tensor], time_constant: int) -> None:
        self.rate = 1 / time_constant
        self.shadow = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Move the shadow towards the weights after a training step."""
        torch._foreach_lerp_(list(self.shadow.values()), [tensors[name] for name in self.shadow], self.rate)
