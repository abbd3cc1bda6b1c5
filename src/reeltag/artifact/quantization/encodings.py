"""Encodings: forms in which a large tensor is stored in fewer bits.

Codebooks and float16 are those of the paper's authors; the others are additions of reeltag.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import contains

import torch
from torch import Tensor

from reeltag.artifact.quantization.sizes import GROUP, LEVELS, channel_count

# Elements processed at a time. As float64 they fit the cache, and malloc reuses their memory; with 65,536 elements page
# faults make it 7 times slower.
CHUNK = 16_384
LARGEST_CODE = 127  # of a coded tensor


class QuantizedTensor(ABC):
    """Base class of tensors in fewer bits. A file stores the fields of these dataclasses."""

    @property
    @abstractmethod
    def encoding(self) -> str:
        """Name of the encoding in recipes."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Return the tensor in float32."""

    @abstractmethod
    def consistent(self) -> bool:
        """Return True if types and shapes of the fields fit each other."""

    @property
    @abstractmethod
    def size(self) -> torch.Size:
        """Shape of the tensor."""

    @abstractmethod
    def rows(self, rows: slice) -> QuantizedTensor:
        """Return some rows of a matrix without copying them; the limits must be multiples of 64 for 4 bits."""

    def spacing(self) -> tuple[Tensor, Tensor] | None:
        """Return the value of code 0 and the step between values; None unless these are 8 bits, evenly spaced.

        Both are of one element, or of the length of the last dimension.
        """
        return None

    def parts(self) -> dict[str, Tensor]:
        """Return the fields by name; the name of the first one, which holds the codes, is empty."""
        first, *others = (field.name for field in fields(self))  # type: ignore[arg-type]
        return {"": getattr(self, first), **{name: getattr(self, name) for name in others}}

    @property
    def nbytes(self) -> int:
        """Size of all fields in bytes."""
        return sum(part.nbytes for part in self.parts().values())


@dataclass(frozen=True)
class CodebookTensor(QuantizedTensor):
    """8-bit codes and a codebook of their values.

    Attributes:
        codes: `uint8`, in the tensor's shape.
        codebook: [256] float32, ascending.
    """

    codes: Tensor
    codebook: Tensor

    @property
    def encoding(self) -> str:
        """Name of the encoding in recipes. The values alone do not tell k-means from quantiles."""
        return "kmeans-8 or quantile-8" if self.spacing() is None else "uniform-8"

    def dequantize(self) -> Tensor:
        """Return the tensor in float32."""
        values = torch.empty(self.codes.shape, device=self.codes.device)
        parts = (torch.split(tensor.view(-1), CHUNK) for tensor in (self.codes, values))
        for codes, part in zip(*parts, strict=True):
            torch.index_select(self.codebook, 0, codes.int(), out=part)
        return values

    def consistent(self) -> bool:
        """Return True if types and shapes of the fields fit each other."""
        return _is(self.codes, torch.uint8) and _is(self.codebook, torch.float32, LEVELS)

    @property
    def size(self) -> torch.Size:
        """Shape of the tensor."""
        return self.codes.shape

    def rows(self, rows: slice) -> CodebookTensor:
        """Return some rows of a matrix, without copying them."""
        return CodebookTensor(self.codes[rows], self.codebook)

    def spacing(self) -> tuple[Tensor, Tensor] | None:
        """Return the value of code 0 and the step between values, float64; None if they are not evenly spaced."""
        low, high = self.codebook[[0, -1]].double()
        step = (high - low) / (LEVELS - 1)
        even = (self.codebook - low - step * torch.arange(LEVELS)).abs() <= 1e-3 * step
        return (low, step) if bool(even.all()) else None


@dataclass(frozen=True)
class ChannelTensor(QuantizedTensor):
    """8-bit codes, evenly spaced between minimum and maximum of each channel (index of the last dimension).

    Attributes:
        codes: `uint8`, in the tensor's shape.
        channels: [2, last dimension] float32, the value of code 0 and the step between values.
    """

    encoding = "channel-8"
    codes: Tensor
    channels: Tensor

    def dequantize(self) -> Tensor:
        """Return the tensor in float32."""
        return self.codes.float().mul_(self.channels[1]).add_(self.channels[0])

    def consistent(self) -> bool:
        """Return True if types and shapes of the fields fit each other."""
        return _is(self.codes, torch.uint8) and _is(self.channels, torch.float32, 2, channel_count(self.codes.shape))

    @property
    def size(self) -> torch.Size:
        """Shape of the tensor."""
        return self.codes.shape

    def rows(self, rows: slice) -> ChannelTensor:
        """Return some rows of a matrix, without copying them."""
        return ChannelTensor(self.codes[rows], self.channels)

    def spacing(self) -> tuple[Tensor, Tensor]:
        """Return the value of code 0 and the step between values, each of the length of the last dimension."""
        low, step = self.channels
        return low, step


@dataclass(frozen=True)
class GroupTensor(QuantizedTensor):
    """4-bit codes, evenly spaced between minimum and maximum of each group of 64 consecutive elements.

    Attributes:
        packed: `uint8`, two codes per byte, the first in the low bits; the last group is padded.
        groups: [2, groups] float16, the value of code 0 and the step between values.
        shape: `int64`, the tensor's shape.
    """

    encoding = "group-4"
    packed: Tensor
    groups: Tensor
    shape: Tensor

    def dequantize(self) -> Tensor:
        """Return the tensor in float32."""
        codes = torch.stack([self.packed & 15, self.packed >> 4], 1).view(-1, GROUP).float()
        low, step = self.groups.float()
        shape = self.shape.tolist()
        values = codes.mul_(step[:, None]).add_(low[:, None])
        return values.view(-1)[: math.prod(shape)].view(shape)

    def consistent(self) -> bool:
        """Return True if types and shapes of the fields fit each other."""
        if not _is(self.shape, torch.int64, self.shape.numel()) or bool((self.shape < 1).any()):
            return False
        groups = -(-math.prod(self.shape.tolist()) // GROUP)
        return _is(self.packed, torch.uint8, groups * GROUP // 2) and _is(self.groups, torch.float16, 2, groups)

    @property
    def size(self) -> torch.Size:
        """Shape of the tensor."""
        return torch.Size(self.shape.tolist())

    def rows(self, rows: slice) -> GroupTensor:
        """Return the rows between two multiples of 64, or up to the end of the matrix."""
        begin, end, _ = rows.indices(self.size[0])
        width = self.size[1]
        groups = slice(begin * width // GROUP, -(-end * width // GROUP))
        packed = self.packed.view(-1, GROUP // 2)[groups].reshape(-1)
        return GroupTensor(packed, self.groups[:, groups], torch.tensor([end - begin, width]))


@dataclass(frozen=True)
class CodedTensor(QuantizedTensor):
    """Integer codes around zero with a step for each output of the weight; files store them entropy-coded.

    Attributes:
        codes: `int8`, in the tensor's shape.
        steps: float16 or float32, the difference between the values of neighbouring codes: [1, H] for a weight [D, H],
            [H, 1] for one [H, D], [1] for a vector.
    """

    encoding = "coded"
    codes: Tensor
    steps: Tensor

    def dequantize(self) -> Tensor:
        """Return the tensor in float32."""
        return self.codes.float().mul_(self.steps)

    def consistent(self) -> bool:
        """Return True if types and shapes of the fields fit each other."""
        types = _is(self.codes, torch.int8) and self.steps.dtype in (torch.float16, torch.float32)
        sizes = [(size, 1) for size in self.codes.shape]
        shapes = self.steps.ndim == self.codes.ndim > 0 and all(map(contains, sizes, self.steps.shape))
        return types and shapes and max(self.steps.shape[0], self.steps.shape[-1]) == self.steps.numel()

    @property
    def size(self) -> torch.Size:
        """Shape of the tensor."""
        return self.codes.shape

    @property
    def outputs_first(self) -> bool:
        """True if each index of the first dimension has a step of its own."""
        return len(self.steps) > 1

    def rows(self, rows: slice) -> CodedTensor:
        """Return some rows of a matrix, without copying them."""
        return CodedTensor(self.codes[rows], self.steps[rows] if self.outputs_first else self.steps)

    def spacing(self) -> tuple[Tensor, Tensor] | None:
        """Return 0 and the steps, each of the length of the last dimension; None if the outputs come first."""
        if self.outputs_first:
            return None
        steps = self.steps.float().flatten()
        return torch.zeros_like(steps), steps


@dataclass(frozen=True)
class HalfTensor(QuantizedTensor):
    """The values in float16.

    Attributes:
        half: in the tensor's shape.
    """

    encoding = "float16"
    half: Tensor

    def dequantize(self) -> Tensor:
        """Return the tensor in float32."""
        return self.half.float()

    def consistent(self) -> bool:
        """Return True if the type is float16."""
        return _is(self.half, torch.float16)

    @property
    def size(self) -> torch.Size:
        """Shape of the tensor."""
        return self.half.shape

    def rows(self, rows: slice) -> HalfTensor:
        """Return some rows of a matrix, without copying them."""
        return HalfTensor(self.half[rows])


def shape_of(stored: Tensor | QuantizedTensor) -> torch.Size:
    """Return the shape of a weight, in whatever way it is stored."""
    return stored.size if isinstance(stored, QuantizedTensor) else stored.shape


def _is(tensor: Tensor, dtype: torch.dtype, *shape: int) -> bool:
    return tensor.dtype == dtype and (not shape or tuple(tensor.shape) == shape)


def assemble(parts: Mapping[str, Tensor]) -> Tensor | QuantizedTensor | None:
    """Assemble a tensor from its stored parts; return None if they do not form a known encoding."""
    codes, others = parts.get(""), {name: tensor for name, tensor in parts.items() if name}
    if codes is None:
        return None
    if codes.dtype == torch.float32 and not others:
        return codes
    kinds = {
        ("codebook",): CodebookTensor,
        ("channels",): ChannelTensor,
        ("steps",): CodedTensor,
        ("groups", "shape"): GroupTensor,
        (): HalfTensor,
    }
    kind = kinds.get(tuple(sorted(others)))
    value = kind(codes, **others) if kind else None
    return value if value is not None and value.consistent() else None


State = Mapping[str, "Tensor | QuantizedTensor"]
