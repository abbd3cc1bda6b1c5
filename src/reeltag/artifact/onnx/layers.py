"""ONNX forms of the layers that families share, equal to their torch modules in evaluation mode."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from torch import nn

from reeltag.artifact.onnx.graph import Value
from reeltag.artifact.onnx.weights import Weights
from reeltag.models.gating import ContextGate, SqueezeExcitation
from reeltag.models.heads import Logistic, MixtureOfExperts
from reeltag.models.layers import BN_EPSILON, L2_EPSILON, Hidden

Floats = npt.NDArray[np.float32]


def batch_norm(weights: Weights) -> tuple[Floats, Floats]:
    """Return scale and shift that equal a batch norm in evaluation mode."""
    mean, variance = weights.array("running_mean"), weights.array("running_var")
    scale = weights.array("weight") / np.sqrt(variance + np.float32(BN_EPSILON))
    return scale, weights.array("bias") - mean * scale


def normed(x: Value, weights: Weights) -> Value:
    """Apply a batch norm to the last axis."""
    scale, shift = batch_norm(weights)
    return x * scale + shift


def linear(x: Value, weights: Weights) -> Value:
    """Apply a `torch.nn.Linear`, whose weight is [outputs, inputs]."""
    y = x @ weights.floats("weight").transpose(1, 0)
    return y + weights.array("bias") if weights.has("bias") else y


def layer_norm(x: Value, weights: Weights) -> Value:
    """Apply a `torch.nn.LayerNorm` to the last axis."""
    scale, shift = weights.array("weight"), weights.array("bias")
    return x.graph.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=nn.LayerNorm(1).eps)


def l2_normalize(x: Value, axis: int) -> Value:
    """Scale to norm 1 along an axis."""
    return x * x.square_sum(axis).rsqrt(L2_EPSILON)


def intra_normalize(v_BDK: Value) -> Value:
    """Scale each column [D] to norm 1 and then the whole to norm 1; flattened D-major, [B, D·K]."""
    squares_B1K = v_BDK.square_sum(1)
    columns_B1K = squares_B1K.rsqrt(L2_EPSILON)
    whole_B11 = (squares_B1K * columns_B1K * columns_B1K).sum(2).rsqrt(L2_EPSILON)
    return (v_BDK * (columns_B1K * whole_B11)).reshape(0, -1)


def hidden(layer: Hidden, x: Value, weights: Weights) -> Value:
    """Return the hidden layer's output, [B, H]."""
    x = weights.product(x, "weight")
    if layer.bias is not None:
        x = x + weights.array("bias")
    if layer.norm is not None:
        x = normed(x, weights.of("norm"))
    return x.clip(0.0, 6.0) if layer.relu6 else x


@singledispatch
def gate(layer: nn.Module, x: Value, weights: Weights) -> Value:
    """Return the gated vector; without a gate, the vector itself."""
    assert isinstance(layer, nn.Identity)
    return x


@gate.register
def _(layer: ContextGate, x: Value, weights: Weights) -> Value:
    return x * context_gates(layer, x, x, weights)


def context_gates(layer: ContextGate, x: Value, source: Value, weights: Weights) -> Value:
    """Return the gates of x, computed from `source`."""
    gates = weights.product(source, "weight")
    if not layer.diagonal:
        gates = gates - x * np.ascontiguousarray(weights.array("weight").diagonal())
    return (gates + weights.array("bias") if layer.bias is not None else normed(gates, weights.of("norm"))).sigmoid()


@gate.register
def _(layer: SqueezeExcitation, x: Value, weights: Weights) -> Value:
    squeezed = normed(weights.product(x, "squeeze"), weights.of("norm")).clip(0.0)
    return x * weights.product(squeezed, "excite").sigmoid()


@singledispatch
def head(layer: nn.Module, x: Value, weights: Weights) -> Value:
    """Return probabilities [B, C]."""
    raise AssertionError(type(layer))


@head.register
def _(layer: Logistic, x: Value, weights: Weights) -> Value:
    return (weights.product(x, "weight") + weights.array("bias")).sigmoid()


@head.register
def _(layer: MixtureOfExperts, x: Value, weights: Weights) -> Value:
    inner = x if layer.gates_in is None else weights.product(x, "gates_in")
    gates_BCM = weights.product(inner, "gates").reshape(0, layer.classes, -1).softmax()
    experts_BCM = (weights.product(x, "experts") + weights.array("bias")).sigmoid().reshape(0, layer.classes, -1)
    experts = layer.bias.numel() // layer.classes
    probabilities = (gates_BCM.slice(2, 0, experts) * experts_BCM).sum(2, keep=False)
    if layer.prob_gate is None:
        return probabilities
    source = x if layer.by_hidden else probabilities
    return probabilities * context_gates(layer.prob_gate, probabilities, source, weights.of("prob_gate"))


def dequantized(frames_BTD: Value, mask_BT1: Value, codes: bool) -> Value:
    """Dequantize frames [B, T, D] and scale each to norm 1; padding becomes 0."""
    if codes:
        x = frames_BTD.cast(TensorProto.FLOAT) * (4 / 255) + (4 / 512 - 2)
    else:  # padding may have any value
        x = frames_BTD.graph.add("Where", mask_BT1.cast(TensorProto.BOOL), frames_BTD, 0.0)
    return x * (x.square_sum(2).rsqrt(L2_EPSILON) * mask_BT1)
