"""Partial quantisation: large tensors in fewer bits (paper section 3.2, golden `quant_uniform`, `float16`).

Codebooks (uniform, k-means, quantile) and float16 are the authors'; a scale for every channel, and 4 bits with a
scale for every group of 64, go beyond the paper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.errors import UsageError

# Tensors of at most this many elements (batch norm, biases) stay float32.
MIN_ELEMENTS = 17_000
LEVELS = 256
GROUP = 64
KMEANS_ROUNDS = 100
# Elements handled at a time: as float64 they stay in the cache, and in memory that malloc need not ask for anew (at
# 65,536 page faults make it 7 times slower).
CHUNK = 16_384
# Elements this near to the middle of two values, in steps, are rounded by the exact rule: a float32 tensor's ends are
# at least 2^-24 of its values apart, so rounding in float64 shifts a middle by less than 2^-18 steps.
UNSURE = 2**-10

Encoding = Literal["float32", "float16", "uniform-8", "kmeans-8", "quantile-8", "channel-8", "group-4"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

Floats = npt.NDArray[np.float64]


class QuantizedTensor(ABC):
    """A tensor in fewer bits. Its dataclass fields are what a file stores.

    Attributes:
        title: how people call it.
    """

    title: ClassVar[str]

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""

    @abstractmethod
    def consistent(self) -> bool:
        """Whether types and shapes of the fields fit each other."""

    @property
    @abstractmethod
    def size(self) -> torch.Size:
        """The tensor's shape."""

    @abstractmethod
    def rows(self, rows: slice) -> QuantizedTensor:
        """Some rows of a matrix, without copying them; 4 bits need multiples of 64."""

    def evenly_spaced(self) -> ChannelTensor:
        """The tensor in 8 bits a channel; quantised once more where it is not stored so that this is exact."""
        return quantize_channels(self.dequantize())

    def parts(self) -> dict[str, Tensor]:
        """The fields by name; the first, which holds the codes, has none."""
        first, *others = (field.name for field in fields(self))  # type: ignore[arg-type]
        return {"": getattr(self, first), **{name: getattr(self, name) for name in others}}

    @property
    def nbytes(self) -> int:
        """Bytes of all fields."""
        return sum(part.nbytes for part in self.parts().values())


@dataclass(frozen=True)
class CodebookTensor(QuantizedTensor):
    """8-bit codes and the values that they stand for.

    Attributes:
        codes: `uint8`, in the tensor's shape.
        codebook: [256] float32, ascending.
    """

    title = "8 bits, codebook"
    codes: Tensor
    codebook: Tensor

    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""
        values = torch.empty(self.codes.shape, device=self.codes.device)
        parts = (torch.split(tensor.view(-1), CHUNK) for tensor in (self.codes, values))
        for codes, part in zip(*parts, strict=True):
            torch.index_select(self.codebook, 0, codes.int(), out=part)
        return values

    def consistent(self) -> bool:
        """Whether types and shapes of the fields fit each other."""
        return _is(self.codes, torch.uint8) and _is(self.codebook, torch.float32, LEVELS)

    @property
    def size(self) -> torch.Size:
        """The tensor's shape."""
        return self.codes.shape

    def rows(self, rows: slice) -> CodebookTensor:
        """Some rows of a matrix."""
        return CodebookTensor(self.codes[rows], self.codebook)

    def evenly_spaced(self) -> ChannelTensor:
        """The same codes in 8 bits a channel; quantised once more where the codebook is not evenly spaced."""
        low, high = self.codebook[0].double(), self.codebook[-1].double()
        step = (high - low) / (LEVELS - 1)
        if bool(((self.codebook - low - step * torch.arange(LEVELS)).abs() > 1e-3 * step).any()):
            return super().evenly_spaced()
        channels = torch.stack([low, step]).float()[:, None].expand(2, _channels(self.codes.shape))
        return ChannelTensor(self.codes, channels)


@dataclass(frozen=True)
class ChannelTensor(QuantizedTensor):
    """8-bit codes, evenly spaced between the ends of each channel, which is a place of the last dimension.

    Attributes:
        codes: `uint8`, in the tensor's shape.
        channels: [2, last dimension] float32, the value of code 0 and the step to the next.
    """

    title = "8 bits a channel"
    codes: Tensor
    channels: Tensor

    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""
        return self.codes.float().mul_(self.channels[1]).add_(self.channels[0])

    def consistent(self) -> bool:
        """Whether types and shapes of the fields fit each other."""
        return _is(self.codes, torch.uint8) and _is(self.channels, torch.float32, 2, _channels(self.codes.shape))

    @property
    def size(self) -> torch.Size:
        """The tensor's shape."""
        return self.codes.shape

    def rows(self, rows: slice) -> ChannelTensor:
        """Some rows of a matrix."""
        return ChannelTensor(self.codes[rows], self.channels)

    def evenly_spaced(self) -> ChannelTensor:
        """Itself."""
        return self


@dataclass(frozen=True)
class GroupTensor(QuantizedTensor):
    """4-bit codes, evenly spaced between the ends of each group of 64 elements that follow each other.

    Attributes:
        packed: `uint8`, two codes a byte, the first in the low bits; the last group is filled up.
        groups: [2, groups] float16, the value of code 0 and the step to the next.
        shape: `int64`, of the tensor.
    """

    title = "4 bits a group"
    packed: Tensor
    groups: Tensor
    shape: Tensor

    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""
        codes = torch.stack([self.packed & 15, self.packed >> 4], 1).view(-1, GROUP).float()
        low, step = self.groups.float()
        shape = self.shape.tolist()
        values = codes.mul_(step[:, None]).add_(low[:, None])
        return values.view(-1)[: math.prod(shape)].view(shape)

    def consistent(self) -> bool:
        """Whether types and shapes of the fields fit each other."""
        if not _is(self.shape, torch.int64, self.shape.numel()) or bool((self.shape < 1).any()):
            return False
        groups = -(-math.prod(self.shape.tolist()) // GROUP)
        return _is(self.packed, torch.uint8, groups * GROUP // 2) and _is(self.groups, torch.float16, 2, groups)

    @property
    def size(self) -> torch.Size:
        """The tensor's shape."""
        return torch.Size(self.shape.tolist())

    def rows(self, rows: slice) -> GroupTensor:
        """Some rows of a matrix, from and to a multiple of 64 or its end."""
        begin, end, _ = rows.indices(self.size[0])
        width = self.size[1]
        groups = slice(begin * width // GROUP, -(-end * width // GROUP))
        packed = self.packed.view(-1, GROUP // 2)[groups].reshape(-1)
        return GroupTensor(packed, self.groups[:, groups], torch.tensor([end - begin, width]))


@dataclass(frozen=True)
class HalfTensor(QuantizedTensor):
    """The values in float16.

    Attributes:
        half: in the tensor's shape.
    """

    title = "float16"
    half: Tensor

    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""
        return self.half.float()

    def consistent(self) -> bool:
        """Whether the type is right."""
        return _is(self.half, torch.float16)

    @property
    def size(self) -> torch.Size:
        """The tensor's shape."""
        return self.half.shape

    def rows(self, rows: slice) -> HalfTensor:
        """Some rows of a matrix."""
        return HalfTensor(self.half[rows])


def _is(tensor: Tensor, dtype: torch.dtype, *shape: int) -> bool:
    return tensor.dtype == dtype and (not shape or tuple(tensor.shape) == shape)


def _channels(shape: Sequence[int]) -> int:
    return shape[-1] if len(shape) > 1 else 1


State = Mapping[str, "Tensor | QuantizedTensor"]


def assemble(parts: Mapping[str, Tensor]) -> Tensor | QuantizedTensor | None:
    """A tensor again from its parts, or None where these are no encoding."""
    codes, others = parts.get(""), {name: tensor for name, tensor in parts.items() if name}
    if codes is None:
        return None
    if codes.dtype == torch.float32 and not others:
        return codes
    kinds = {
        ("codebook",): CodebookTensor,
        ("channels",): ChannelTensor,
        ("groups", "shape"): GroupTensor,
        (): HalfTensor,
    }
    kind = kinds.get(tuple(sorted(others)))
    value = kind(codes, **others) if kind else None
    return value if value is not None and value.consistent() else None


def quantize(tensor: Tensor, encoding: Encoding) -> Tensor | QuantizedTensor:
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
    rows = tensor.reshape(-1, _channels(tensor.shape))
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
        name: quantize(value, encoding) if isinstance(value, Tensor) and is_large(value) else value
        for name, value in state.items()
    }


def dequantize_state(state: State) -> dict[str, Tensor]:
    """The state dict that a model loads."""
    return {name: value.dequantize() if isinstance(value, QuantizedTensor) else value for name, value in state.items()}


def stored_as(state: State) -> str:
    """How the large tensors of a state are stored, for people."""
    titles = {value.title for value in state.values() if isinstance(value, QuantizedTensor)}
    return " and ".join(sorted(titles)) or "float32"


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
        return elements + 8 * _channels(shape)
    if encoding == "group-4":
        groups = -(-elements // GROUP)
        return groups * (GROUP // 2 + 4) + 8 * len(shape)
    return elements + 4 * LEVELS
