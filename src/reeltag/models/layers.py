"""Parts that the families share.

Shapes: B videos, T frames, D features, K clusters, H hidden units, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPSILON = 1e-3


def dequantize(codes: Tensor) -> Tensor:
    """Map `uint8` codes to float32 values in [-2, 2] (algorithms: x = q·4/255 + 4/512 − 2; golden `dequantize`)."""
    return codes.float() * (4 / 255) + (4 / 512 - 2)


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """[B, T] bool, true where a frame is real."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Scale to norm 1 along a dimension; zero stays zero (TensorFlow's epsilon, on the squared norm)."""
    return x * x.square().sum(dim, keepdim=True).clamp_min(1e-12).rsqrt()


def normal(*shape: int, scale: float) -> nn.Parameter:
    """A parameter drawn from N(0, scale²)."""
    return nn.Parameter(torch.randn(*shape) * scale)


def batch_norm(features: int) -> nn.BatchNorm1d:
    """Batch norm over [N, features] with the published epsilon; the tagger sets the decay."""
    return nn.BatchNorm1d(features, eps=BN_EPSILON)


class FrameNorm(nn.Module):
    """Batch norm over all real frames of a batch.

    Args:
        features: D, the width of a frame.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = batch_norm(features)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Normalise frames; the mask is None where every frame is real. Padded frames come out arbitrary."""
        if mask_BT is None or not self.training:
            rows: Tensor = self.norm(x_BTD.flatten(0, 1))
            return rows.view_as(x_BTD)
        out_BTD = torch.zeros_like(x_BTD)
        # autocast may narrow the norm's result
        out_BTD[mask_BT] = self.norm(x_BTD[mask_BT]).to(out_BTD.dtype)
        return out_BTD


class ContextGate(nn.Module):
    """Context gating, y = x ⊙ sigmoid(BN(xG)) (Miech et al. 2017; golden `model_netvlad`, `cg_in` and `cg_out`).

    Args:
        features: width of x.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = normal(features, features, scale=1 / math.sqrt(features))
        self.norm = batch_norm(features)

    def forward(self, x: Tensor) -> Tensor:
        """Gate [B, features]."""
        return x * torch.sigmoid(self.norm(x @ self.weight))


class Hidden(nn.Module):
    """Fully connected layer: a bias, or batch norm and relu6.

    Args:
        inputs: width of the pooled vector.
        outputs: H.
        scale: standard deviation of the initial weights.
        relu: batch norm and relu6 instead of a bias.
    """

    def __init__(self, inputs: int, outputs: int, scale: float, relu: bool) -> None:
        super().__init__()
        self.weight = normal(inputs, outputs, scale=scale)
        self.bias = None if relu else normal(outputs, scale=0.01)
        self.norm = batch_norm(outputs) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        x = x @ self.weight
        if self.bias is not None:
            x = x + self.bias
        return x if self.norm is None else F.relu6(self.norm(x))
