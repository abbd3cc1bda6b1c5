"""Layers that the families share.

Shapes: B videos, T frames, D features, K clusters, H hidden units, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltag.core.distributed.collectives import all_reduce_sums, sample_global
from reeltag.core.distributed.process_group import world_size
from reeltag.models.frames import Frames
from reeltag.models.products import product

BN_EPSILON = 1e-3
L2_EPSILON = 1e-12  # on the squared norm, as TensorFlow has it


def dequantize(codes: Tensor) -> Tensor:
    """Dequantize `uint8` codes to float32 values in [-2, 2], x = q·4/255 + 4/512 − 2 (golden `dequantize`)."""
    values = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    # In blocks that stay in the CPU's cache for all three passes; a GPU would need three launches a block.
    size = _PART if codes.device.type == "cpu" else max(1, codes.numel())
    for out, part in zip(torch.split(values.view(-1), size), torch.split(codes.flatten(), size), strict=True):
        out.copy_(part).mul_(4 / 255).add_(4 / 512 - 2)
    return values


_PART = 1 << 20  # values


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Scale to L2 norm 1 along a dimension, with TensorFlow's epsilon; zero stays zero."""
    return x * x.square().sum(dim, keepdim=True).clamp_min(L2_EPSILON).rsqrt()


def intra_normalize(v_BDK: Tensor) -> Tensor:
    """Scale each column [D] to norm 1, then the whole to norm 1; return it flattened D-major, [B, D·K]."""
    # One pass over the squares, the most expensive part, gives both scales.
    squares_BK = v_BDK.square().sum(1)
    columns_BK = squares_BK.clamp_min(L2_EPSILON).rsqrt()
    whole_B1 = (squares_BK * columns_BK.square()).sum(1, keepdim=True).clamp_min(L2_EPSILON).rsqrt()
    return (v_BDK * (columns_BK * whole_B1)[:, None]).flatten(1)


def normal(*shape: int, scale: float, mean: float = 0.0) -> nn.Parameter:
    """Create a parameter sampled from N(mean, scale²)."""
    values = torch.empty(*shape)
    # On the meta device, torch would import its compiler to sample nothing: 1.2 s whenever a model is opened.
    return nn.Parameter(values if values.is_meta else values.normal_().mul_(scale).add_(mean))


def glorot(inputs: int, outputs: int) -> nn.Parameter:
    """Create a parameter [inputs, outputs] sampled from TensorFlow's default, U(±√(6/(inputs + outputs)))."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over [N, features] whose training statistics are those of the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows [N, features]."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return torch.addcmul(self.bias, standardize(x, None, self), self.weight).to(x.dtype)


def batch_norm(features: int) -> BatchNorm:
    """Build batch norm over [N, features] with the published epsilon; the tagger sets the decay."""
    return BatchNorm(features, eps=BN_EPSILON)


class Dropout(nn.Dropout):
    """Dropout whose mask is sampled for the global batch, so that ranks drop what one process would."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop units of x [B, features] in training."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        return x * sample_global(lambda rows: F.dropout(x.new_ones(rows, *x.shape[1:]), self.p), len(x))


class Pooling(nn.Module):
    """Base class of poolings, which turn normalised frames into one vector [B, outputs]; a family is its pooling.

    Attributes:
        outputs: width of the vector.
        scale: standard deviation of the hidden layer's initial weights.
        ordered: needs the frames in order, so training samples no frames and none counts more than once.
    """

    outputs: int
    scale: float
    ordered = False


class PerFeature(Pooling):
    """Pooling that pools each feature separately and concatenates the results.

    Args:
        widths: D_f of each feature.
        parts: one pooling for each feature, with an attribute `outputs`.
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
        vectors = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)


class FrameNorm(nn.Module):
    """Batch norm over all frames of a batch, each weighted by its count.

    Args:
        features: D, the width of a frame.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = batch_norm(features)

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Normalise frames [..., D] with weights [...]; None if every frame counts once."""
        if weights is None or not self.training:
            normed: Tensor = self.norm(x.flatten(0, -2))
            return normed.view_as(x)
        return torch.addcmul(self.norm.bias, standardize(x, weights, self.norm), self.norm.weight)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the scale and shift [D] that equal this norm in evaluation mode."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return scale, norm.bias - norm.running_mean * scale


class InputNorm(nn.Module):
    """Batch norm of the input; its scale and shift are kept apart from the normalised values.

    Args:
        features: D, the width of a frame.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = batch_norm(features)

    def forward(self, frames: Frames) -> Frames:
        """Normalise the frames' values and attach scale and shift."""
        values = standardize(frames.values, frames.weights, self.norm)
        return replace(frames, values=values, scale=self.norm.weight, shift=self.norm.bias)


def standardize(x: Tensor, weights: Tensor | None, norm: nn.BatchNorm1d) -> Tensor:
    """Apply batch norm without its scale and shift to x [..., D]; weights [...], or None if every row counts once."""
    rows = x.flatten(0, -2)
    if norm.training and weights is None and world_size() > 1:
        weights = rows.new_ones(len(rows), dtype=torch.float32)
    if norm.training and weights is not None:
        return _standardize_weighted(rows, weights.flatten(), norm).view_as(x)
    moments, momentum = (norm.running_mean, norm.running_var), norm.momentum or 0.0
    return F.batch_norm(rows, *moments, training=norm.training, momentum=momentum, eps=norm.eps).view_as(x)


def _standardize_weighted(rows_NF: Tensor, weights_N: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Standardize rows as if each occurred as often as it weighs; in float32 even under autocast."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    with torch.autocast(rows_NF.device.type, enabled=False):
        rows_NF = rows_NF.float()
        total_F, total_1 = all_reduce_sums(weights_N @ rows_NF, weights_N.sum()[None])
        total = total_1[0]
        mean = total_F / total
        centred_NF = rows_NF - mean
        (squares_F,) = all_reduce_sums(weights_N @ centred_NF.square())
        variance = squares_F / total
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (total / (total - 1).clamp_min(1)), norm.momentum)
        return centred_NF * (variance + norm.eps).rsqrt()


class Clusters(nn.Module):
    """Projection of the real frames to K clusters, BN(xW).

    Args:
        features: D.
        clusters: K.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.weight = normal(features, clusters, scale=1 / math.sqrt(features))
        self.norm = FrameNorm(clusters)

    def forward(self, frames: Frames) -> Tensor:
        """Return the projected real frames [N, K]; in evaluation mode the norm is folded into the product."""
        if self.training:
            return self.norm(frames.product(self.weight), frames.row_weights)  # type: ignore[no-any-return]
        scale_K, shift_K = self.norm.folded()
        return frames.product(self.weight * scale_K, shift_K)


class SoftAssignment(Clusters):
    """Soft assignment of frames to K clusters, a = softmax(BN(xW)); 0 for padded frames."""

    def forward(self, frames: Frames) -> Tensor:
        """Return assignments [B, T, K], not weighted by counts."""
        return frames.spread(super().forward(frames).softmax(1))


class Hidden(nn.Module):
    """Fully connected layer followed by a bias, batch norm, or batch norm and relu6.

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
        """Return the layer's output [B, outputs] of x [B, inputs]."""
        x = product(x, self.weight)
        if self.bias is not None:
            x = x + self.bias
        if self.norm is not None:
            x = self.norm(x)
        return F.relu6(x) if self.relu6 else x
