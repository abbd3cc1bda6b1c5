"""ONNX forms of the poolings: frames [B, T, D] and their mask to [B, outputs], equal to each module's `forward`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

from torch import nn

from reeltag.artifact.onnx.graph import Value, concat
from reeltag.artifact.onnx.layers import intra_normalize, l2_normalize, layer_norm, linear, normed
from reeltag.artifact.onnx.weights import Weights
from reeltag.core.errors import UsageError
from reeltag.models.attention import AttentionPooling
from reeltag.models.dbof import ClassicDBoF, GatedDBoF, SoftDBoF
from reeltag.models.layers import Clusters, PerFeature
from reeltag.models.mean import Mean
from reeltag.models.netfv import VARIANCE_FLOOR, NetFVFeature
from reeltag.models.netvlad import NetVLADFeature
from reeltag.models.nextvlad import NeXtVLADFeature


@dataclass(frozen=True)
class OnnxFrames:
    """Input of a pooling.

    Attributes:
        x: [B, T, D]; padded frames have arbitrary values.
        mask: [B, T, 1] float32, 1 for real frames and 0 for padding.
        lengths: [B] int64, number of real frames.
    """

    x: Value
    mask: Value
    lengths: Value

    def split(self, widths: Sequence[int]) -> list[OnnxFrames]:
        """Split into the frames of each feature, by their widths."""
        return [replace(self, x=piece) for piece in self.x.split(list(widths), axis=2)]

    def mean(self, x_BTK: Value) -> Value:
        """Return the mean over the real frames, [B, K]."""
        return (x_BTK * self.mask).sum(1, keep=False) / self.mask.sum(1, keep=False)


@singledispatch
def pool(layer: nn.Module, frames: OnnxFrames, weights: Weights) -> Value:
    """Add the nodes of a pooling and return its output [B, outputs].

    Raises:
        UsageError: the family has no ONNX form.
    """
    name = type(layer).__name__
    raise UsageError(f"{weights.member}: {name} has no ONNX form; register one in reeltag.artifact.onnx.poolings.pool")


@pool.register
def _(layer: PerFeature, frames: OnnxFrames, weights: Weights) -> Value:
    pieces = zip(layer.parts, frames.split(layer.widths), strict=True)
    return concat([pool(part, piece, weights.of("parts", n)) for n, (part, piece) in enumerate(pieces)], axis=1)


@pool.register
def _(layer: Mean, frames: OnnxFrames, weights: Weights) -> Value:
    return frames.mean(frames.x)


def clusters(layer: Clusters, frames: OnnxFrames, weights: Weights) -> Value:
    """Return BN(xW), [B, T, K], of all frames, padding included."""
    return normed(weights.product(frames.x, "weight"), weights.of("norm", "norm"))


def assign(layer: Clusters, frames: OnnxFrames, weights: Weights) -> Value:
    """Return the soft assignment of each frame to K clusters, [B, T, K]; 0 for padded frames."""
    return clusters(layer, frames, weights).softmax() * frames.mask


@pool.register
def _(layer: NetVLADFeature, frames: OnnxFrames, weights: Weights) -> Value:
    a_BTK = assign(layer.assign, frames, weights.of("assign"))
    v_BDK = frames.x.transpose(0, 2, 1) @ a_BTK
    if layer.centres is not None:
        v_BDK = v_BDK - a_BTK.sum(1) * weights.floats("centres")
    return intra_normalize(v_BDK)


@pool.register
def _(layer: NetFVFeature, frames: OnnxFrames, weights: Weights) -> Value:
    a_BTK = assign(layer.assign, frames, weights.of("assign"))
    a_B1K, x_BTD = a_BTK.sum(1), frames.x
    x_BDK, square_BDK = x_BTD.transpose(0, 2, 1) @ a_BTK, (x_BTD * x_BTD).transpose(0, 2, 1) @ a_BTK
    coupled = layer.centres is None
    c_DK = weights.of("assign").floats("weight") * layer.coupling if coupled else weights.floats("centres")
    deviation_DK = weights.floats("deviation")
    variance_DK = deviation_DK * deviation_DK + VARIANCE_FLOOR
    first = (x_BDK - a_B1K * c_DK) / variance_DK
    second = (a_B1K * (c_DK * c_DK) + square_BDK - x_BDK * (c_DK * 2.0)) / (variance_DK * variance_DK) - a_B1K
    return concat([intra_normalize(first), l2_normalize(second.reshape(0, -1), 1)], axis=1)


@pool.register
def _(layer: ClassicDBoF, frames: OnnxFrames, weights: Weights) -> Value:
    a_BTK = clusters(layer, frames, weights).clip(0.0, 6.0)
    return frames.mean(a_BTK) if layer.mean else (a_BTK * frames.mask).max(1)


@pool.register
def _(layer: SoftDBoF, frames: OnnxFrames, weights: Weights) -> Value:
    a_BTK = assign(layer.assign, frames, weights.of("assign"))
    total = l2_normalize(a_BTK.sum(1, keep=False), 1)
    return concat([total, l2_normalize(a_BTK.max(1), 1)], axis=1) if layer.maximum else total


@pool.register
def _(layer: GatedDBoF, frames: OnnxFrames, weights: Weights) -> Value:
    a_BTK = assign(layer.assign, frames, weights.of("assign"))
    reduced = weights.product(l2_normalize(a_BTK.max(1), 1), "reduce")
    gates_BK = normed(weights.product(reduced, "expand"), weights.of("norm")).sigmoid()
    return l2_normalize(gates_BK * a_BTK.sum(1, keep=False), 1)


@pool.register
def _(layer: NeXtVLADFeature, frames: OnnxFrames, weights: Weights) -> Value:
    wide = linear(frames.x, weights.of("expand"))
    attention_BTG1 = (linear(wide, weights.of("attend")).sigmoid() * frames.mask).unsqueeze(3)
    logits = normed(weights.product(wide, "assign"), weights.of("norm", "norm"))
    a_BTGK = logits.reshape(0, 0, layer.groups, -1).softmax() * attention_BTG1
    width, count = layer.centres.shape
    a_BNK, wide_BNd = a_BTGK.reshape(0, -1, count), wide.reshape(0, -1, width)
    v_BDK = wide_BNd.transpose(0, 2, 1) @ a_BNK - a_BNK.sum(1) * weights.floats("centres")
    return normed(l2_normalize(v_BDK, 1).reshape(0, -1), weights.of("out_norm"))


@pool.register
def _(layer: AttentionPooling, frames: OnnxFrames, weights: Weights) -> Value:
    x_BTW = layer_norm(linear(frames.x, weights.of("project")), weights.of("frame_norm"))
    queries, width = layer.queries.shape
    part = width // layer.heads
    q_hQd = weights.floats("queries").reshape(queries, layer.heads, part).transpose(1, 0, 2)
    k_BhdT = linear(x_BTW, weights.of("keys")).reshape(0, 0, layer.heads, part).transpose(0, 2, 3, 1)
    v_BhTd = linear(x_BTW, weights.of("values")).reshape(0, 0, layer.heads, part).transpose(0, 2, 1, 3)
    padding_B11T = ((frames.mask - 1.0) * 1e9).transpose(0, 2, 1).unsqueeze(1)
    attention_BhQT = (q_hQd @ k_BhdT * (1 / math.sqrt(part)) + padding_B11T).softmax()
    y_BQW = linear((attention_BhQT @ v_BhTd).transpose(0, 2, 1, 3).reshape(0, 0, -1), weights.of("mix"))
    gate, value = linear(layer_norm(y_BQW, weights.of("answer_norm")), weights.of("expand")).split([2 * width] * 2, 2)
    return (y_BQW + linear(gate * gate.sigmoid() * value, weights.of("reduce"))).reshape(0, -1)
