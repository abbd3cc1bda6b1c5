"""What a model computes with: weights dequantised once, or on processors their codes, in a quarter of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from reeltag.artifact.quantization.encodings import QuantizedTensor, State
from reeltag.artifact.quantization.quantize import is_large, quantize_channels

# Rows of a weight that are handled at a time: of floats what the cache holds, of 8-bit products what one scale of x
# covers, whose sums stay below 2^31.
FLOAT_ROWS, BYTE_ROWS = 256, 16_384
COPIED_ROWS = 4096
HIDDEN = "hidden.weight"
FEW = 4  # up to so many rows of x are faster one by one
PRODUCTS = {"matmul", "__matmul__"}
# What modules do to their parameters.
WITHOUT_FLOATS = {"__get__", "__set__", "detach", "requires_grad_"}


class CodedWeight(Tensor):
    """A weight [D, H] that is float32 to whoever uses it, and holds codes.

    In a product xW never more than some rows are floats; whatever else is done with it gets all of them, for that
    moment.

    Args:
        stored: the codes.
    """

    stored: QuantizedTensor | SignedColumns

    @staticmethod
    def __new__(cls, stored: QuantizedTensor | SignedColumns) -> CodedWeight:
        """A tensor of the shape, without memory of its own."""
        return Tensor._make_wrapper_subclass(cls, stored.size, dtype=torch.float32)

    def __init__(self, stored: QuantizedTensor | SignedColumns) -> None:
        self.stored = stored

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.stored.encoding}, {list(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Multiply, or dequantise for whatever is no product."""
        name = func.__name__
        if name in PRODUCTS and len(args) == 2 and isinstance(args[1], CodedWeight) and args[0].ndim > 1:
            x = _floats(args[0])
            return args[1].product(x.flatten(0, -2)).view(*x.shape[:-1], args[1].shape[1])
        if name not in WITHOUT_FLOATS:
            args, kwargs = tree_map(_floats, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():  # what comes out is a plain tensor
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The same codes on their way to a parameter."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].stored)
        return func(*tree_map(_floats, args), **tree_map(_floats, kwargs or {}))

    def product(self, x_ND: Tensor) -> Tensor:
        """xW, [N, H]."""
        assert isinstance(self.stored, QuantizedTensor)
        y_NH = x_ND.new_zeros(len(x_ND), self.shape[1])
        for rows in _parts(self.shape[0], FLOAT_ROWS):
            y_NH.addmm_(x_ND[:, rows], self.stored.rows(rows).dequantize())
        return y_NH


@dataclass(frozen=True)
class SignedColumns:
    """A matrix [D, H] in `int8` codes, as 8-bit products take it.

    Attributes:
        parts: [H, ≤ 16,384] each, a column's codes beside each other.
        zero: [H], value of code 0.
        step: [H], from a code to the next.
    """

    encoding: ClassVar[str] = "8-bit products"
    parts: tuple[Tensor, ...]
    zero: Tensor
    step: Tensor

    @classmethod
    def of(cls, stored: QuantizedTensor) -> SignedColumns:
        """The same matrix where it is stored in 8 bits, evenly spaced; quantised once more where it is not."""
        spacing = stored.spacing()
        if spacing is None:
            return cls.of(quantize_channels(stored.dequantize()))
        low, step = (each.double().expand(stored.size[1]) for each in spacing)
        parts = torch.split(stored.parts()[""], BYTE_ROWS)
        signed = tuple((part.t().contiguous() ^ 0x80).view(torch.int8) for part in parts)
        return cls(signed, (low + 128 * step).float(), step.float())

    @property
    def size(self) -> torch.Size:
        """The matrix's shape."""
        return torch.Size([sum(part.shape[1] for part in self.parts), len(self.zero)])

    def dequantize(self) -> Tensor:
        """The matrix in float32."""
        return torch.cat([part.t() for part in self.parts]).float().mul_(self.step).add_(self.zero)


class ByteWeight(CodedWeight):
    """A coded weight whose products are of 8-bit numbers.

    Each row of x is rounded, a part at a time, to 255 steps of a scale of its own, so what one video gets does not
    depend on those beside it. The sums of codes are exact.

    Args:
        stored: the codes.
    """

    stored: SignedColumns

    def product(self, x_ND: Tensor) -> Tensor:
        """xW, [N, H]."""
        y_NH = x_ND.new_zeros(len(x_ND), self.shape[1])
        for x, part in zip(torch.split(x_ND, BYTE_ROWS, 1), self.stored.parts, strict=True):
            scale_N1 = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            codes = (x / scale_N1).round_().to(torch.int8)
            rows = torch.split(codes, 1 if len(codes) <= FEW else len(codes))
            y_NH.addcmul_(torch.cat([torch._int_mm(row, part.t()) for row in rows]).float(), scale_N1)
        return torch.addcmul(x_ND.sum(1, keepdim=True) * self.stored.zero, y_NH, self.stored.step)


def dense_state(state: State, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dict that is dequantised once.

    The hidden layer's weight is most of a model, so it is never there twice: it is written at once in the layout in
    which a product with few rows is fastest, column by column, and where it is large in a type of its own.
    """
    return {name: _by_columns(value, dtype) if name == HIDDEN else _floats(value) for name, value in state.items()}


def _by_columns(value: Tensor | QuantizedTensor, dtype: torch.dtype) -> Tensor:
    inputs, outputs = value.size if isinstance(value, QuantizedTensor) else value.shape
    large = isinstance(value, QuantizedTensor) or is_large(value)
    columns = torch.empty(outputs, inputs, dtype=dtype if large else torch.float32)
    for rows in _parts(inputs, COPIED_ROWS):
        part = value.rows(rows).dequantize() if isinstance(value, QuantizedTensor) else value[rows]
        columns[:, rows].copy_(part.T)
    return columns.T


def coded_state(state: State) -> dict[str, Tensor]:
    """A state dict whose quantised matrices stay as they are stored, in memory of their own."""
    return {
        name: CodedWeight(_copied(value))
        if isinstance(value, QuantizedTensor) and len(value.size) == 2
        else _floats(value)
        for name, value in state.items()
    }


def _copied(stored: QuantizedTensor) -> QuantizedTensor:
    # What may be pages of the file would go if the file was cut.
    return type(stored)(*(part.clone() for part in stored.parts().values()))


def byte_state(state: State) -> dict[str, Tensor]:
    """A state dict whose large matrices multiply in 8 bits; those that are not stored so are quantised once more."""
    return {name: _byte_weight(value) for name, value in state.items()}


def _byte_weight(value: Tensor | QuantizedTensor) -> Tensor:
    if isinstance(value, QuantizedTensor):
        return ByteWeight(SignedColumns.of(value)) if len(value.size) == 2 else value.dequantize()
    return ByteWeight(SignedColumns.of(quantize_channels(value))) if value.ndim == 2 and is_large(value) else value


def _floats(value: Any) -> Any:
    if isinstance(value, CodedWeight):
        return value.stored.dequantize()
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))
