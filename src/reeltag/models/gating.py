"""Gating layers: scale a vector by sigmoids that are computed from itself or from another vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltag.models.config import GatingConfig
from reeltag.models.layers import batch_norm, normal


class ContextGate(nn.Module):
    """Context gating, y = x ⊙ sigmoid(BN(sG)) (Miech et al. 2017; golden `model_netvlad`, `cg_in` and `cg_out`).

    Args:
        features: width of x.
        inputs: width of s; None if s is x itself.
        norm: apply batch norm before the sigmoid; otherwise add a bias.
        diagonal: keep G's diagonal, through which each feature of x takes part in its own gate.
    """

    def __init__(self, features: int, inputs: int | None = None, *, norm: bool = True, diagonal: bool = True) -> None:
        super().__init__()
        scale = 1 / math.sqrt(features)
        self.diagonal = diagonal
        self.weight = normal(inputs or features, features, scale=scale)
        self.norm = batch_norm(features) if norm else nn.Identity()
        self.bias = None if norm else normal(features, scale=scale)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Gate x [B, features] by a source [B, inputs]; by default by itself."""
        gates = (x if source is None else source) @ self.weight
        if not self.diagonal:
            gates = gates - x * self.weight.diagonal()
        gates = self.norm(gates) if self.bias is None else gates + self.bias
        return x * torch.sigmoid(gates)


class SqueezeExcitation(nn.Module):
    """Squeeze and excitation, y = x ⊙ sigmoid(relu(BN(xW₁)) W₂) (Lin et al. 2018, section 3.3).

    Args:
        features: width of x.
        reduction: ratio of features to the bottleneck's width.
    """

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        bottleneck = max(1, features // reduction)
        self.squeeze = normal(features, bottleneck, scale=math.sqrt(2 / features))
        self.norm = batch_norm(bottleneck)
        self.excite = normal(bottleneck, features, scale=math.sqrt(2 / bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        """Gate x [B, features]."""
        return x * torch.sigmoid(F.relu(self.norm(x @ self.squeeze)) @ self.excite)


def build_gate(features: int, config: GatingConfig) -> nn.Module:
    """Build the gate that a configuration names; the identity for kind `none`.

    Args:
        features: width of the gated vector.
        config: kind of gate and its settings.
    """
    if config.kind == "se":
        return SqueezeExcitation(features, config.reduction)
    if config.kind == "context":
        return ContextGate(features, norm=config.norm, diagonal=config.diagonal)
    return nn.Identity()
