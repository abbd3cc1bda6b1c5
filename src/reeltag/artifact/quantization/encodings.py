"""How a large tensor is stored in fewer bits. Codebooks and float16 are the authors', the others ours."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

LEVELS = 256
GROUP = 64
# Elements handled at a time: as float64 they stay in the cache, and in memory that malloc need not ask for anew (at
# 65,536 page faults make it 7 times slower).
CHUNK = 16_384


class QuantizedTensor(ABC):
    """A tensor in fewer bits. Its dataclass fields are what a file stores."""

    @property
    @abstractmethod
    def encoding(self) -> str:
        """What recipes call it."""

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

    def spacing(self) -> tuple[Tensor, Tensor] | None:
        """The value of code 0 and the step to the next, for 8-bit codes of evenly spaced values; None for others."""
        return None

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

    codes: Tensor
    codebook: Tensor

    @property
    def encoding(self) -> str:
        """What recipes call it; which rule chose values that are not evenly spaced, they do not tell."""
        return "kmeans-8 or quantile-8" if self.spacing() is None else "uniform-8"

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

    def spacing(self) -> tuple[Tensor, Tensor] | None:
        """The value of code 0 and the step to the next, float64; None where the codebook is not evenly spaced."""
        low, high = self.codebook[[0, -1]].double()
        step = (high - low) / (LEVELS - 1)
        even = (self.codebook - low - step * torch.arange(LEVELS)).abs() <= 1e-3 * step
        return (low, step) if bool(even.all()) else None


@dataclass(frozen=True)
class ChannelTensor(QuantizedTensor):
    """8-bit codes, evenly spaced between the ends of each channel, which is a place of the last dimension.

    Attributes:
        codes: `uint8`, in the tensor's shape.
        channels: [2, last dimension] float32, the value of code 0 and the step to the next.
    """

    encoding = "channel-8"
    codes: Tensor
    channels: Tensor

    def dequantize(self) -> Tensor:
        """The tensor again, in float32."""
        return self.codes.float().mul_(self.channels[1]).add_(self.channels[0])

    def consistent(self) -> bool:
        """Whether types and shapes of the fields fit each other."""
        return _is(self.codes, torch.uint8) and _is(self.channels, torch.float32, 2, channel_count(self.codes.shape))

    @property
    def size(self) -> torch.Size:
        """The tensor's shape."""
        return self.codes.shape

    def rows(self, rows: slice) -> ChannelTensor:
        """Some rows of a matrix."""
        return ChannelTensor(self.codes[rows], self.channels)

    def spacing(self) -> tuple[Tensor, Tensor]:
        """The value of code 0 and the step to the next, [last dimension] each."""
        low, step = self.channels
        return low, step


@dataclass(frozen=True)
class GroupTensor(QuantizedTensor):
    """4-bit codes, evenly spaced between the ends of each group of 64 elements that follow each other.

    Attributes:
        packed: `uint8`, two codes a byte, the first in the low bits; the last group is filled up.
        groups: [2, groups] float16, the value of code 0 and the step to the next.
        shape: `int64`, of the tensor.
    """

    encoding = "group-4"
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

    encoding = "float16"
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


def channel_count(shape: Sequence[int]) -> int:
    """Places of the last dimension; a vector is one channel."""
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
