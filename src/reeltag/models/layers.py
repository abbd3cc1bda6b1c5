"""Parts that the families share.

Shapes: B videos, T frames, D features, K clusters, H hidden units, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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


def masked(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The same with padded frames at 0; the mask is None where every frame is real."""
    return x_BTD if mask_BT is None else x_BTD * mask_BT[..., None]


def frame_mean(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean over the real frames, [B, D]."""
    frames = x_BTD.shape[1] if mask_BT is None else mask_BT.sum(1, keepdim=True)
    return masked(x_BTD, mask_BT).sum(1) / frames


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Scale to norm 1 along a dimension; zero stays zero (TensorFlow's epsilon, on the squared norm)."""
    return x * x.square().sum(dim, keepdim=True).clamp_min(1e-12).rsqrt()


def normal(*shape: int, scale: float, mean: float = 0.0) -> nn.Parameter:
    """A parameter drawn from N(mean, scale²)."""
    values = torch.empty(*shape)
    # To draw nothing, on the meta device, torch would import its compiler first: 1.2 s whenever a model is opened.
    return nn.Parameter(values if values.is_meta else values.normal_().mul_(scale).add_(mean))


def glorot(inputs: int, outputs: int) -> nn.Parameter:
    """A parameter [inputs, outputs] drawn from TensorFlow's default, U(±√(6/(inputs + outputs)))."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))


def batch_norm(features: int) -> nn.BatchNorm1d:
    """Batch norm over [N, features] with the published epsilon; the tagger sets the decay."""
    return nn.BatchNorm1d(features, eps=BN_EPSILON)


class Pooling(nn.Module):
    """What a family is: normalised frames [B, T, D] and their mask to one vector [B, outputs].

    Attributes:
        outputs: width of the vector.
        scale: standard deviation of the hidden layer's initial weights.
        ordered: needs the frames in order, so training draws none of them at random.
    """

    outputs: int
    scale: float
    ordered = False


class PerFeature(Pooling):
    """Pools each feature apart and concatenates.

    Args:
        widths: D_f of each feature.
        parts: the pooling of each, with an attribute `outputs`.
        scale: standard deviation of the hidden layer's initial weights.
    """

    def __init__(self, widths: Sequence[int], parts: Iterable[nn.Module], scale: float) -> None:
        super().__init__()
        self.widths, self.scale = list(widths), scale
        self.parts = nn.ModuleList(parts)
        self.outputs = sum(part.outputs for part in self.parts)  # type: ignore[misc]

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Pool normalised frames to [B, outputs]; the mask is None where every frame is real."""
        pieces = torch.split(x_BTD, self.widths, 2)
        return torch.cat([part(piece, mask_BT) for part, piece in zip(self.parts, pieces, strict=True)], 1)


def shares(count: int, features: int, divisor: int) -> list[int]:
    """`count` clusters for the first feature, 1/divisor of it for each further one."""
    return [count, *[count // divisor] * (features - 1)]


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


class SoftAssignment(nn.Module):
    """Shares of each frame in K clusters, a = softmax(BN(xW)); padded frames have none.

    Args:
        features: D.
        clusters: K.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.weight = normal(features, clusters, scale=1 / math.sqrt(features))
        self.norm = FrameNorm(clusters)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Frames to shares [B, T, K]."""
        return masked(self.norm(x_BTD @ self.weight, mask_BT).softmax(2), mask_BT)


class Hidden(nn.Module):
    """Fully connected layer, then a bias, batch norm, or batch norm and relu6.

    Args:
        inputs: width of the pooled vector.
        outputs: H.
        scale: standard deviation of the initial weights.
        activation: `bias`, `norm` or `relu6`.
    """

    def __init__(self, inputs: int, outputs: int, scale: float, activation: str) -> None:
        super().__init__()
        self.weight = normal(inputs, outputs, scale=scale)
        self.bias = normal(outputs, scale=0.01) if activation == "bias" else None
        self.norm = None if activation == "bias" else batch_norm(outputs)
        self.relu6 = activation == "relu6"

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        x = x @ self.weight
        if self.bias is not None:
            x = x + self.bias
        if self.norm is not None:
            x = self.norm(x)
        return F.relu6(x) if self.relu6 else x
