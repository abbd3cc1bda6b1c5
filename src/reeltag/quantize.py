"""Partial 8-bit quantisation (paper section 3.2, golden `quant_uniform`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Tensors of at most this many elements (batch norm, biases) stay float32.
MIN_ELEMENTS = 17_000
LEVELS = 256


@dataclass(frozen=True)
class QuantizedTensor:
    """8-bit codes and the values that they stand for.

    Attributes:
        codes: `uint8`, in the tensor's shape.
        codebook: [256] float32, ascending.
    """

    codes: Tensor
    codebook: Tensor

    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""
        return self.codebook[self.codes.long()]


State = Mapping[str, "Tensor | QuantizedTensor"]


def quantize_uniform(tensor: Tensor) -> QuantizedTensor:
    """Code each element by the nearest of 256 values that are evenly spaced from minimum to maximum.

    Between two equally near values the lower wins, as in the authors' program.
    """
    values = tensor.detach().cpu().numpy().astype(np.float64)
    low, high = float(values.min()), float(values.max())
    # In float64: float32 ends would make float32 steps and shift some codes by one.
    codebook = np.linspace(low, high, LEVELS)
    step = (high - low) / (LEVELS - 1) or 1.0
    below = np.clip((values - low) // step, 0, LEVELS - 2).astype(np.int64)
    nearer_above = np.square(values - codebook[below + 1]) < np.square(values - codebook[below])
    codes = (below + nearer_above).astype(np.uint8)
    return QuantizedTensor(torch.from_numpy(codes), torch.from_numpy(codebook.astype(np.float32)))


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is quantised."""
    return tensor.is_floating_point() and tensor.numel() > MIN_ELEMENTS


def quantize_state(state: State) -> dict[str, Tensor | QuantizedTensor]:
    """Quantise the large tensors of a state dict; keep the others, and those that are quantised already."""
    return {
        name: quantize_uniform(value) if isinstance(value, Tensor) and is_large(value) else value
        for name, value in state.items()
    }


def dequantize_state(state: State) -> dict[str, Tensor]:
    """The state dict that a model loads."""
    return {name: value.dequantize() if isinstance(value, QuantizedTensor) else value for name, value in state.items()}


def quantized_bytes(state: State) -> int:
    """Bytes of the tensors after quantisation; shapes suffice, so meta tensors will do."""
    return sum(map(_quantized_bytes, state.values()))


def _quantized_bytes(value: Tensor | QuantizedTensor) -> int:
    if isinstance(value, QuantizedTensor):
        return value.codes.nbytes + value.codebook.nbytes
    return value.numel() + 4 * LEVELS if is_large(value) else value.nbytes
