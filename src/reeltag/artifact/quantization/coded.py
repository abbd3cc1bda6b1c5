"""Encode a model's weights by rate and distortion: steps from what errors cost, and rounding with feedback."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reeltag.artifact.quantization.calibration import Calibration
from reeltag.artifact.quantization.encodings import LARGEST_CODE, CodedTensor, HalfTensor, QuantizedTensor, State
from reeltag.artifact.quantization.feedback import inverse_factor, round_with_feedback

INPUT_DAMPING, OUTPUT_DAMPING = 0.1, 0.2
REACHED = 110  # code of the largest weight, at most; feedback can add to a weight
FINEST, COARSEST = 1e-5, 3.2e-3  # steps that `coarsest_step` tries
MEASURABLE = 40  # times the allowed loss; below it a loss grows with the square of the step
SPREAD = 0.5  # exponent with which the step of a column follows what its errors cost


@dataclass(frozen=True)
class _Block:
    """Units of one side of a product, and their inverse factor.

    Attributes:
        units: indices, those whose errors cost most first, so that many others are left to compensate them.
        factor: [N, N], upper triangular; see `inverse_factor`.
    """

    units: Tensor
    factor: Tensor


@dataclass(frozen=True)
class _Product:
    """Weight in products.

    Attributes:
        inputs: blocks of inputs.
        outputs: blocks of outputs.
        relative_steps: [H], steps for a knob of 1.
    """

    inputs: list[_Block]
    outputs: list[_Block]
    relative_steps: Tensor


class Encoder:
    """Encoder of a model's weights for any step.

    Args:
        state: the weights; those that are quantized already stay as they are.
        calibration: what their errors cost.
    """

    def __init__(self, state: State, calibration: Calibration) -> None:
        self.state, self.calibration = state, calibration
        self.products = {name: _product(calibration, name) for name in calibration.inputs}

    def encode(self, step: float) -> dict[str, Tensor | QuantizedTensor]:
        """Encode the weights.

        Args:
            step: the knob c; steps and distortion grow with it.
        """
        return {name: self._encoded(name, value, step) for name, value in self.state.items()}

    @staticmethod
    def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | QuantizedTensor]:
        """Store small tensors in float16, except those that lose more than rounding by it."""
        return {name: _half(value) for name, value in tensors.items()}

    def units(self, step: float) -> dict[str, float]:
        """Return by name of each other parameter the change that costs as much as a step of a code, on average."""
        found = {}
        for name, value in self.state.items():
            coded = name in self.products or name in self.calibration.columns
            if isinstance(value, Tensor) and name in self.calibration.squares and not coded:
                mean = self.calibration.squares[name].item() / (self.calibration.videos * value.numel())
                largest = float(value.abs().max())
                found[name] = min(step / math.sqrt(mean), largest) if mean > 0 else largest
        return found

    def _encoded(self, name: str, value: Tensor | QuantizedTensor, step: float) -> Tensor | QuantizedTensor:
        if isinstance(value, QuantizedTensor):
            return value
        if name in self.products:
            return self._with_feedback(name, value, step)
        if name in self.calibration.columns:
            return self._by_gradients(name, value, step)
        return _half(value) if value.is_floating_point() else value

    def _with_feedback(self, name: str, value: Tensor, step: float) -> CodedTensor:
        product, outputs_first = self.products[name], name in self.calibration.outputs_first
        weight = value.T if outputs_first else value
        steps = _stored_steps(product.relative_steps * step, weight)
        codes = torch.empty(weight.shape, dtype=torch.int8)
        for inputs, outputs in itertools.product(product.inputs, product.outputs):
            part = inputs.units[:, None], outputs.units
            codes[part] = round_with_feedback(weight[part], inputs.factor, outputs.factor, steps[outputs.units].float())
        if outputs_first:
            return CodedTensor(codes.T.contiguous(), steps[:, None])
        return CodedTensor(codes, steps[None])

    def _by_gradients(self, name: str, value: Tensor, step: float) -> CodedTensor:
        """Round a tensor that is in no product, with a step for each index of the last dimension."""
        columns = self.calibration.columns[name] / self.calibration.videos
        columns = columns * (len(columns) / value.numel())
        damped = columns + OUTPUT_DAMPING * columns.mean() + torch.finfo(columns.dtype).tiny
        relative = damped ** -(SPREAD / 2) * damped.mean() ** ((SPREAD - 1) / 2)
        steps = _stored_steps(relative * step, value.reshape(-1, len(columns))).view(*[1] * (value.ndim - 1), -1)
        return CodedTensor((value / steps).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), steps)


def coarsest_step(loss: Callable[[float], float], most: float) -> float:
    """Return the largest step whose loss of GAP is allowed, or the finest if none is.

    A small loss drowns in the noise of few videos. It grows with the square of the step, so the step is computed from a
    loss that is large enough to be measured well; then it shrinks until the loss that is measured with it is allowed.

    Args:
        loss: function that encodes with a step and measures the loss; the step that is returned is its last argument.
        most: largest loss that is allowed.
    """
    step, found = COARSEST, loss(COARSEST)
    while found > MEASURABLE * most and step > FINEST:
        step = max(FINEST, step / 2)
        found = loss(step)
    if found > most and step > FINEST:
        step = max(FINEST, step * math.sqrt(most / found))
        while loss(step) > most and step > FINEST:
            step = max(FINEST, step / math.sqrt(2))
    return step


def _product(calibration: Calibration, name: str) -> _Product:
    moments = calibration.inputs[name].per(calibration.videos), calibration.outputs[name].per_row()
    inputs, outputs = (_blocks(*each) for each in zip(moments, (INPUT_DAMPING, OUTPUT_DAMPING), strict=True))
    u, v = (torch.cat([each.factor.diagonal() for each in blocks]).log() for blocks in (inputs, outputs))
    columns = torch.cat([each.units for each in outputs])
    # Frames of a video are not independent, as A ⊗ G has them: recurrent weights matter several times more.
    assumed = math.prod(sum(float(each.diagonal().double().sum()) for each in side) for side in moments)
    measured = calibration.squares[name].item() / calibration.videos
    scale = (assumed / measured) ** 0.5 if measured else math.inf
    relative = (u.mean() + v.mean() + SPREAD * (v - v.mean())).exp() * scale
    return _Product(inputs, outputs, torch.empty(len(columns)).index_copy(0, columns, relative.float()))


def _blocks(moments: Iterable[Tensor], damping: float) -> list[_Block]:
    blocks: list[_Block] = []
    begin = 0
    for each in moments:
        order = each.diagonal().argsort(descending=True, stable=True)
        blocks.append(_Block(begin + order, inverse_factor(each[order][:, order], damping).float()))
        begin += len(each)
    return blocks


def _stored_steps(steps: Tensor, weight: Tensor) -> Tensor:
    """Return steps [H] as they are stored: small enough to be finite, large enough for codes to reach all weights."""
    largest = weight.abs().amax(0)
    limits = torch.finfo(torch.float16)
    limited = steps.clamp_max(1e3 * largest + limits.smallest_normal).clamp_min(largest / REACHED)
    half = limited.half()
    return half if bool(((half >= limits.smallest_normal) & (half <= limits.max)).all()) else limited


def _half(value: Tensor) -> Tensor | HalfTensor:
    """Store a small tensor in float16, unless it is so small or so large that it loses more than by rounding."""
    half = value.half()
    size, error = (torch.linalg.vector_norm(each) for each in (value, half.float() - value))
    return HalfTensor(half) if bool(error <= torch.finfo(torch.float16).eps / 2 * size) else value
