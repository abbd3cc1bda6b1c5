"""Classifier heads: from a vector to C independent probabilities, always in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reeltag.models.config import HeadConfig
from reeltag.models.gating import ContextGate
from reeltag.models.layers import glorot


def l2_penalty(l2: float, *weights: Tensor) -> Tensor:
    """Return the penalty l2·Σw²/2 over all weights."""
    # The gradient of a norm takes fewer passes over the weights than that of a sum of squares.
    return torch.stack([torch.linalg.vector_norm(weight).square() for weight in weights]).sum() * (l2 / 2)


class Logistic(nn.Module):
    """Logistic head, p = sigmoid(xW + b) (golden `logistic`).

    Args:
        inputs: width of x.
        classes: C.
        config: only `l2` is used.
    """

    def __init__(self, inputs: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.l2 = config.l2
        self.weight = glorot(inputs, classes)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities [B, C] of x [B, inputs]."""
        return torch.sigmoid((x @ self.weight).float() + self.bias)

    def penalty(self) -> Tensor:
        """Return the L2 penalty, l2·Σw²/2."""
        return l2_penalty(self.l2, self.weight)


class MixtureOfExperts(nn.Module):
    """Mixture of experts, p = Σ_m softmax(gates)_m · sigmoid(experts)_m (golden `moe2_probgating`).

    There is one gate more than experts: the last gate selects a dummy expert with probability 0. Columns are
    class-major: the gates of a class are adjacent.

    Args:
        inputs: width of x.
        classes: C.
        config: number of experts, L2, rank of the gates, gating of the probabilities.
    """

    def __init__(self, inputs: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.l2, self.classes, rank = config.l2, classes, config.gate_rank
        self.gates_in = glorot(inputs, rank) if rank else None
        self.gates = glorot(rank or inputs, classes * (config.experts + 1))
        self.experts = glorot(inputs, classes * config.experts)
        self.bias = nn.Parameter(torch.zeros(classes * config.experts))
        self.by_hidden = config.prob_gating_input == "hidden"
        self.prob_gate = (
            ContextGate(classes, inputs if self.by_hidden else None, diagonal=config.prob_gating_diagonal)
            if config.prob_gating
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities [B, C] of x [B, inputs]."""
        gates = (x if self.gates_in is None else x @ self.gates_in) @ self.gates
        # The small dimension M comes first: softmax over it is 15 times faster than over adjacent elements.
        gates_MBC = torch.unflatten(gates.float(), 1, (self.classes, -1)).movedim(2, 0).softmax(0)
        experts = torch.sigmoid((x @ self.experts).float() + self.bias)
        experts_MBC = torch.unflatten(experts, 1, (self.classes, -1)).movedim(2, 0)
        probabilities: Tensor = (gates_MBC[:-1] * experts_MBC).sum(0)
        if self.prob_gate is not None:
            probabilities = self.prob_gate(probabilities, x if self.by_hidden else None).float()
        return probabilities

    def penalty(self) -> Tensor:
        """Return the L2 penalty on gates and experts, l2·Σw²/2."""
        weights = [self.gates, self.experts] + ([] if self.gates_in is None else [self.gates_in])
        return l2_penalty(self.l2, *weights)


def build_head(inputs: int, classes: int, config: HeadConfig) -> Logistic | MixtureOfExperts:
    """Build the head that a configuration names.

    Args:
        inputs: width of the vector.
        classes: C.
        config: kind of head and its settings.
    """
    return (Logistic if config.kind == "logistic" else MixtureOfExperts)(inputs, classes, config)
