"""Partial quantization: store large tensors in fewer bits (paper section 3.2, golden `quant_uniform`, `float16`).

Codebooks (uniform, k-means, quantile) and float16 are those of the authors. A scale per channel, and 4 bits with a
scale per group of 64 elements, go beyond the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.artifact.quantization.encodings import (
    CHUNK,
    ChannelTensor,
    CodebookTensor,
    GroupTensor,
    HalfTensor,
    QuantizedTensor,
    State,
)
from reeltag.artifact.quantization.sizes import (
    DATA_FREE,
    GROUP,
    LEVELS,
    Encoding,
    channel_count,
    encoded_bytes,
    is_quantized,
)
from reeltag.core.errors import UsageError

KMEANS_ROUNDS = 100
# Elements this close to the midpoint of two values, in steps, are rounded by the exact rule. Minimum and maximum of a
# float32 tensor differ by at least 2^-24 of their size, so float64 rounding moves a midpoint by less than 2^-18 steps.
UNSURE = 2**-10

Floats = npt.NDArray[np.float64]


def quantize_tensor(tensor: Tensor, encoding: Encoding) -> Tensor | QuantizedTensor:
    """Store a tensor in an encoding; float32 returns it unchanged.

    Raises:
        UsageError: the encoding needs calibration videos; an element is not finite, or exceeds 65,504, the range of
            float16 and of 4-bit scales.
    """
    _refuse_calibrated(encoding)
    if encoding == "float32":
        return tensor
    largest = max(map(abs, _min_max(tensor)))
    if encoding in ("float16", "group-4") and largest > torch.finfo(torch.float16).max:
        raise UsageError(f"{encoding} holds values up to 65,504, and a weight is larger; choose uniform-8")
    if encoding == "float16":
        return HalfTensor(tensor.half())
    if encoding == "group-4":
        return _quantize_groups(tensor)
    if encoding == "channel-8":
        return quantize_channels(tensor)
    if encoding == "uniform-8":
        return quantize_uniform(tensor)
    codebook = (kmeans_codebook if encoding == "kmeans-8" else quantile_codebook)(_flat(tensor))
    midpoints = (codebook[1:] + codebook[:-1]) / 2
    return _encode(tensor, codebook, lambda values: np.searchsorted(midpoints, values))


def _refuse_calibrated(encoding: Encoding) -> None:
    if encoding not in DATA_FREE:
        raise UsageError(
            f"{encoding} needs videos that show what errors of weights cost; use `reeltag quantize --encoding "
            f"{encoding} --calibrate SHARDS`, or one of {', '.join(DATA_FREE)}"
        )


def quantize_uniform(tensor: Tensor) -> CodebookTensor:
    """Replace each element of a float32 tensor by the nearest of 256 values, evenly spaced from minimum to maximum.

    Between two equally near values the lower one is taken, as in the authors' program.

    Raises:
        UsageError: an element is not finite.
    """
    low, high = _min_max(tensor)
    # In float64, since float32 steps would shift some codes by one.
    codebook = np.linspace(low, high, LEVELS)
    step = (high - low) / (LEVELS - 1) or 1.0

    def nearest(values: Floats) -> Floats:
        positions = (values - low) / step
        codes = np.rint(positions)
        unsure = np.flatnonzero(np.abs(positions - codes) > 0.5 - UNSURE)
        below = np.clip(positions[unsure], 0, LEVELS - 2).astype(np.int64)
        nearer_above = np.square(values[unsure] - codebook[below + 1]) < np.square(values[unsure] - codebook[below])
        codes[unsure] = below + nearer_above
        return codes

    return _encode(tensor, codebook, nearest)


def _min_max(tensor: Tensor) -> tuple[float, float]:
    low, high = (end.item() for end in tensor.aminmax())
    if not math.isfinite(high - low):
        raise UsageError("a weight is not finite; choose another checkpoint")
    return low, high


def _flat(tensor: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.detach().cpu().reshape(-1).numpy()
    return values


def _encode(tensor: Tensor, codebook: Floats, nearest: Callable[[Floats], npt.NDArray[Any]]) -> CodebookTensor:
    """Encode a tensor with the codes that `nearest` returns for float64 values."""
    values = _flat(tensor)
    codes = np.empty(len(values), np.uint8)
    for begin in range(0, len(values), CHUNK):
        part = slice(begin, begin + CHUNK)
        codes[part] = nearest(values[part].astype(np.float64))
    return CodebookTensor(torch.from_numpy(codes).view(tensor.shape), torch.from_numpy(codebook.astype(np.float32)))


def kmeans_codebook(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Return 256 values of least squared distance.

    Lloyd's algorithm starts with evenly spaced values; a value without elements stays as it is.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)  # sorted first: float32 sorts faster
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    codebook = np.linspace(ordered[0], ordered[-1], LEVELS)
    for _ in range(KMEANS_ROUNDS):
        bounds = np.searchsorted(ordered, (codebook[1:] + codebook[:-1]) / 2, "right")
        bounds = np.concatenate([[0], bounds, [len(ordered)]])
        counts = np.diff(bounds)
        means = np.where(counts > 0, np.diff(sums[bounds]) / np.maximum(counts, 1), codebook)
        if np.array_equal(means, codebook):
            break
        codebook = np.maximum.accumulate(means)  # rounding errors of the long sums must not change the order
    return codebook


def quantile_codebook(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Return the authors' codebook: the quantiles at linspace(0, 1, 256), from minimum to maximum, interpolated."""
    return np.asarray(np.quantile(values.astype(np.float64), np.linspace(0, 1, LEVELS)))


def quantize_channels(tensor: Tensor) -> ChannelTensor:
    """Replace each element by the nearest of 256 values, evenly spaced between minimum and maximum of its channel."""
    rows = tensor.reshape(-1, channel_count(tensor.shape))
    low = rows.amin(0)
    step = (rows.amax(0) - low) / (LEVELS - 1)
    codes = rows.sub(low).div_(step.clamp_min(1e-38)).round_().clamp_(0, LEVELS - 1)
    return ChannelTensor(codes.to(torch.uint8).view(tensor.shape), torch.stack([low, step]))


def _quantize_groups(tensor: Tensor) -> GroupTensor:
    flat = tensor.reshape(-1)
    filled = torch.cat([flat, flat[-1:].expand(-len(flat) % GROUP)]).view(-1, GROUP)
    low = filled.amin(1).half()
    step = ((filled.amax(1) - low.float()) / 15).half()
    scale = step.float().clamp_min(1e-38)[:, None]
    positions = filled.sub_(low.float()[:, None]).div_(scale).round_().clamp_(0, 15)  # `filled` is a copy
    codes = positions.to(torch.uint8).view(-1, 2)
    return GroupTensor(codes[:, 0] | codes[:, 1] << 4, torch.stack([low, step]), torch.tensor(tensor.shape))


def is_large(tensor: Tensor) -> bool:
    """Return True if a tensor is large enough to be quantized."""
    return tensor.is_floating_point() and is_quantized(tensor.shape)


def quantize_state(state: State, encoding: Encoding = "uniform-8") -> dict[str, Tensor | QuantizedTensor]:
    """Quantize the large tensors of a state dict; keep the others, and those that are quantized already.

    Raises:
        UsageError: a tensor cannot be stored in the encoding; see `quantize_tensor`.
    """
    _refuse_calibrated(encoding)
    return {
        name: quantize_tensor(value, encoding) if isinstance(value, Tensor) and is_large(value) else value
        for name, value in state.items()
    }


def dequantize_state(state: State) -> dict[str, Tensor]:
    """Return a state dict of plain tensors, which a model can load."""
    return {name: value.dequantize() if isinstance(value, QuantizedTensor) else value for name, value in state.items()}


def stored_as(state: State) -> str:
    """Return the encodings of a state's large tensors, or of all if none is large, by their names in recipes."""
    quantized = [value for value in state.values() if isinstance(value, QuantizedTensor)]
    large = [value for value in quantized if is_quantized(value.size)]
    encodings = {value.encoding for value in large or quantized}
    return " and ".join(sorted(encodings)) or "float32"


def quantized_bytes(state: State, encoding: Encoding = "uniform-8") -> int:
    """Return the bytes of the tensors after quantization; meta tensors suffice, since only shapes matter."""
    return sum(
        encoded_bytes(value.shape, encoding) if isinstance(value, Tensor) and is_large(value) else value.nbytes
        for value in state.values()
    )
