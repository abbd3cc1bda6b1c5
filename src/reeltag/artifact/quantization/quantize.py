"""Partial quantisation: large tensors in fewer bits (paper section 3.2, golden `quant_uniform`, `float16`).

Codebooks (uniform, k-means, quantile) and float16 are the authors'; a scale for every channel, and 4 bits with a
scale for every group of 64, go beyond the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.artifact.quantization.encodings import (
    CHUNK,
    GROUP,
    LEVELS,
    ChannelTensor,
    CodebookTensor,
    GroupTensor,
    HalfTensor,
    QuantizedTensor,
    State,
    channel_count,
)
from reeltag.core.errors import UsageError

# Tensors of at most this many elements (batch norm, biases) stay float32.
MIN_ELEMENTS = 17_000
KMEANS_ROUNDS = 100
# Elements this near to the middle of two values, in steps, are rounded by the exact rule: a float32 tensor's ends are
# at least 2^-24 of its values apart, so rounding in float64 shifts a middle by less than 2^-18 steps.
UNSURE = 2**-10

Encoding = Literal["float32", "float16", "uniform-8", "kmeans-8", "quantile-8", "channel-8", "group-4"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

Floats = npt.NDArray[np.float64]


def quantize_tensor(tensor: Tensor, encoding: Encoding) -> Tensor | QuantizedTensor:
    """A tensor in an encoding; float32 leaves it as it is.

    Raises:
        UsageError: an element is not finite, or beyond 65,504, where float16 and 4-bit scales end.
    """
    if encoding == "float32":
        return tensor
    largest = max(map(abs, _ends(tensor)))
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
    middles = (codebook[1:] + codebook[:-1]) / 2
    return _coded(tensor, codebook, lambda values: np.searchsorted(middles, values))


def quantize_uniform(tensor: Tensor) -> CodebookTensor:
    """Code each element of a float32 tensor by the nearest of 256 values, evenly spaced from minimum to maximum.

    Between two equally near values the lower wins, as in the authors' program.

    Raises:
        UsageError: an element is not finite.
    """
    low, high = _ends(tensor)
    # In float64: float32 ends would make float32 steps and shift some codes by one.
    codebook = np.linspace(low, high, LEVELS)
    step = (high - low) / (LEVELS - 1) or 1.0

    def nearest(values: Floats) -> Floats:
        places = (values - low) / step
        codes = np.rint(places)
        unsure = np.flatnonzero(np.abs(places - codes) > 0.5 - UNSURE)
        below = np.clip(places[unsure], 0, LEVELS - 2).astype(np.int64)
        nearer_above = np.square(values[unsure] - codebook[below + 1]) < np.square(values[unsure] - codebook[below])
        codes[unsure] = below + nearer_above
        return codes

    return _coded(tensor, codebook, nearest)


def _ends(tensor: Tensor) -> tuple[float, float]:
    low, high = (end.item() for end in tensor.aminmax())
    if not math.isfinite(high - low):
        raise UsageError("a weight is not finite; choose another checkpoint")
    return low, high


def _flat(tensor: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.detach().cpu().reshape(-1).numpy()
    return values


def _coded(tensor: Tensor, codebook: Floats, nearest: Callable[[Floats], npt.NDArray[Any]]) -> CodebookTensor:
    """A tensor in codes that `nearest` gives for float64 values."""
    values = _flat(tensor)
    codes = np.empty(len(values), np.uint8)
    for begin in range(0, len(values), CHUNK):
        part = slice(begin, begin + CHUNK)
        codes[part] = nearest(values[part].astype(np.float64))
    return CodebookTensor(torch.from_numpy(codes).view(tensor.shape), torch.from_numpy(codebook.astype(np.float32)))


def kmeans_codebook(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """256 values of least squared distance (Lloyd's algorithm, from evenly spaced ones); one without elements stays."""
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
        codebook = np.maximum.accumulate(means)  # rounding of the long sums must not disturb the order
    return codebook


def quantile_codebook(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """256 values with equally many elements around each: the middles of 256 equal shares."""
    return np.asarray(np.quantile(values.astype(np.float64), (np.arange(LEVELS) + 0.5) / LEVELS))


def quantize_channels(tensor: Tensor) -> ChannelTensor:
    """Code each element by the nearest of 256 values, evenly spaced between the ends of its channel."""
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
    places = filled.sub_(low.float()[:, None]).div_(scale).round_().clamp_(0, 15)  # `filled` is a copy
    codes = places.to(torch.uint8).view(-1, 2)
    return GroupTensor(codes[:, 0] | codes[:, 1] << 4, torch.stack([low, step]), torch.tensor(tensor.shape))


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is quantised."""
    return tensor.is_floating_point() and tensor.numel() > MIN_ELEMENTS


def quantize_state(state: State, encoding: Encoding = "uniform-8") -> dict[str, Tensor | QuantizedTensor]:
    """Quantise the large tensors of a state dict; keep the others, and those that are quantised already."""
    return {
        name: quantize_tensor(value, encoding) if isinstance(value, Tensor) and is_large(value) else value
        for name, value in state.items()
    }


def dequantize_state(state: State) -> dict[str, Tensor]:
    """The state dict that a model loads."""
    return {name: value.dequantize() if isinstance(value, QuantizedTensor) else value for name, value in state.items()}


def stored_as(state: State) -> str:
    """How the large tensors of a state are stored, as recipes call it."""
    found = {value.encoding for value in state.values() if isinstance(value, QuantizedTensor)}
    return " and ".join(sorted(found)) or "float32"


def quantized_bytes(state: State, encoding: Encoding = "uniform-8") -> int:
    """Bytes of the tensors after quantisation; shapes suffice, so meta tensors will do."""
    return sum(
        _quantized_bytes(value.shape, encoding) if isinstance(value, Tensor) and is_large(value) else value.nbytes
        for value in state.values()
    )


def _quantized_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    elements = math.prod(shape)
    if encoding == "float32":
        return 4 * elements
    if encoding == "float16":
        return 2 * elements
    if encoding == "channel-8":
        return elements + 8 * channel_count(shape)
    if encoding == "group-4":
        groups = -(-elements // GROUP)
        return groups * (GROUP // 2 + 4) + 8 * len(shape)
    return elements + 4 * LEVELS
