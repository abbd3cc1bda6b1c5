"""Parts that the families share.

Shapes: B videos, T frames, D features, K clusters, H hidden units, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltag.core.distributed.collectives import drawn, whole_sums
from reeltag.core.distributed.process_group import world_size
from reeltag.models.frames import Frames

BN_EPSILON = 1e-3
L2_EPSILON = 1e-12  # on the squared norm, as TensorFlow has it


def dequantize(codes: Tensor) -> Tensor:
    """Map `uint8` codes to float32 values in [-2, 2] (algorithms: x = q·4/255 + 4/512 − 2; golden `dequantize`)."""
    values = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    # In parts that a processor's cache holds for all three passes; to a GPU each would be three launches.
    size = _PART if codes.device.type == "cpu" else max(1, codes.numel())
    for out, part in zip(torch.split(values.view(-1), size), torch.split(codes.flatten(), size), strict=True):
        out.copy_(part).mul_(4 / 255).add_(4 / 512 - 2)
    return values


_PART = 1 << 20  # values


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Scale to norm 1 along a dimension; zero stays zero (TensorFlow's epsilon)."""
    return x * x.square().sum(dim, keepdim=True).clamp_min(L2_EPSILON).rsqrt()


def intra_normalize(v_BDK: Tensor) -> Tensor:
    """Scale each column [D] to norm 1 and then the whole to norm 1; flattened D-major, [B, D·K]."""
    # Both scales come out of one pass over the squares, which is most of what this costs.
    squares_BK = v_BDK.square().sum(1)
    columns_BK = squares_BK.clamp_min(L2_EPSILON).rsqrt()
    whole_B1 = (squares_BK * columns_BK.square()).sum(1, keepdim=True).clamp_min(L2_EPSILON).rsqrt()
    return (v_BDK * (columns_BK * whole_B1)[:, None]).flatten(1)


def normal(*shape: int, scale: float, mean: float = 0.0) -> nn.Parameter:
    """A parameter drawn from N(mean, scale²)."""
    values = torch.empty(*shape)
    # To draw nothing, on the meta device, torch would import its compiler first: 1.2 s whenever a model is opened.
    return nn.Parameter(values if values.is_meta else values.normal_().mul_(scale).add_(mean))


def glorot(inputs: int, outputs: int) -> nn.Parameter:
    """A parameter [inputs, outputs] drawn from TensorFlow's default, U(±√(6/(inputs + outputs)))."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over [N, features], whose statistics in training are those of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return torch.addcmul(self.bias, standardize(x, None, self), self.weight).to(x.dtype)


def batch_norm(features: int) -> BatchNorm:
    """Batch norm over [N, features] with the published epsilon; the tagger sets the decay."""
    return BatchNorm(features, eps=BN_EPSILON)


class Dropout(nn.Dropout):
    """Dropout that drops in a shared batch what it would drop in the whole."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        return x * drawn(lambda rows: F.dropout(x.new_ones(rows, *x.shape[1:]), self.p), len(x))


class Pooling(nn.Module):
    """What a family is: normalised frames to one vector [B, outputs].

    Attributes:
        outputs: width of the vector.
        scale: standard deviation of the hidden layer's initial weights.
        ordered: needs the frames in order, so training draws none of them at random: none counts more than once.
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

    def forward(self, frames: Frames) -> Tensor:
        """Pool normalised frames to [B, outputs]."""
        pieces = frames.split(self.widths)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], 1)


def shares(count: int, features: int, divisor: int) -> list[int]:
    """`count` clusters for the first feature, 1/divisor of it for each further one."""
    return [count, *[count // divisor] * (features - 1)]


class FrameNorm(nn.Module):
    """Batch norm over all frames of a batch, each as often as its weight says.

    Args:
        features: D, the width of a frame.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = batch_norm(features)

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Normalise frames [..., D]; weights [...], or None where every frame counts once."""
        if weights is None or not self.training:
            normed: Tensor = self.norm(x.flatten(0, -2))
            return normed.view_as(x)
        return torch.addcmul(self.norm.bias, standardize(x, weights, self.norm), self.norm.weight)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Scale and shift [D] that are the whole norm outside training."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return scale, norm.bias - norm.running_mean * scale


class InputNorm(nn.Module):
    """Batch norm of the input, whose scale and shift stay apart.

    Args:
        features: D, the width of a frame.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = batch_norm(features)

    def forward(self, frames: Frames) -> Frames:
        """Normalise frames as they came."""
        values = standardize(frames.values, frames.weights, self.norm)
        return replace(frames, values=values, scale=self.norm.weight, shift=self.norm.bias)


def standardize(x: Tensor, weights: Tensor | None, norm: nn.BatchNorm1d) -> Tensor:
    """Batch norm without its scale and shift; [..., D] and weights [...], or None where every row counts once."""
    rows = x.flatten(0, -2)
    if norm.training and weights is None and world_size() > 1:
        weights = rows.new_ones(len(rows), dtype=torch.float32)
    if norm.training and weights is not None:
        return _standardize_weighted(rows, weights.flatten(), norm).view_as(x)
    moments, momentum = (norm.running_mean, norm.running_var), norm.momentum or 0.0
    return F.batch_norm(rows, *moments, training=norm.training, momentum=momentum, eps=norm.eps).view_as(x)


def _standardize_weighted(rows_NF: Tensor, weights_N: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """As if each row stood there as often as it weighs; in float32, whatever autocast would choose."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    with torch.autocast(rows_NF.device.type, enabled=False):
        rows_NF = rows_NF.float()
        total_F, total_1 = whole_sums(weights_N @ rows_NF, weights_N.sum()[None])
        total = total_1[0]
        mean = total_F / total
        centred_NF = rows_NF - mean
        (squares_F,) = whole_sums(weights_N @ centred_NF.square())
        variance = squares_F / total
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (total / (total - 1).clamp_min(1)), norm.momentum)
        return centred_NF * (variance + norm.eps).rsqrt()


class Clusters(nn.Module):
    """BN(xW) of the real frames.

    Args:
        features: D.
        clusters: K.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.weight = normal(features, clusters, scale=1 / math.sqrt(features))
        self.norm = FrameNorm(clusters)

    def forward(self, frames: Frames) -> Tensor:
        """Frames to [N, K]; outside training the norm is part of the product."""
        if self.training:
            return self.norm(frames.product(self.weight), frames.row_weights)  # type: ignore[no-any-return]
        scale_K, shift_K = self.norm.folded()
        return frames.product(self.weight * scale_K, shift_K)


class SoftAssignment(Clusters):
    """Shares of each frame in K clusters, a = softmax(BN(xW)); padded frames have none."""

    def forward(self, frames: Frames) -> Tensor:
        """Frames to shares [B, T, K], whatever their counts."""
        return frames.spread(super().forward(frames).softmax(1))


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
