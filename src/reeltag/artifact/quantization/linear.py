"""Weights as a model computes with them: dequantized once, or as codes, which take a quarter of the memory on CPUs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from reeltag.artifact.quantization.encodings import CodedTensor, QuantizedTensor, State, shape_of
from reeltag.artifact.quantization.quantize import quantize_channels
from reeltag.artifact.quantization.sizes import is_quantized
from reeltag.core.environment import INT8_FLAGS, cpu_flags

# Rows of a weight that are processed at a time. Float products take what the cache holds; an 8-bit product takes the
# rows that share one scale of x, and its sums of codes stay below 2^31.
FLOAT_ROWS, INT8_ROWS = 256, 16_384
COPIED_ROWS = 4096
HIDDEN = "hidden.weight"
FEW = 4  # up to this many rows of x are multiplied faster one by one
PRODUCTS = {"matmul", "__matmul__"}

logger = logging.getLogger(__name__)


class QuantizedWeight(Tensor):
    """A weight [D, H] that looks like a float32 tensor and stores codes.

    A product xW dequantizes only some rows of W at a time. Any other operation dequantizes all of W for its duration.

    Args:
        stored: the codes.
    """

    stored: QuantizedTensor | SignedColumns

    @staticmethod
    def __new__(cls, stored: QuantizedTensor | SignedColumns) -> QuantizedWeight:
        """Return a tensor of the right shape whose elements share one NaN, so that it takes no memory of its own."""
        return torch.full((1, 1), torch.nan).expand(stored.size).as_subclass(cls)

    def __init__(self, stored: QuantizedTensor | SignedColumns) -> None:
        self.stored = stored

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.stored.encoding}, {list(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Multiply by the codes, or run any other operation on the dequantized weight."""
        name, kwargs = func.__name__, kwargs or {}
        if name in PRODUCTS and len(args) == 2 and isinstance(args[1], QuantizedWeight) and args[0].ndim > 1:
            x = _dequantized(args[0])
            return args[1].left_multiply(x.flatten(0, -2)).view(*x.shape[:-1], args[1].shape[1])
        if name == "detach":  # `torch.nn.Parameter` detaches the tensor that it wraps
            return type(args[0])(args[0].stored)
        if name in ("__get__", "__set__", "requires_grad_"):
            result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
            if result is None or result is args[0] or not isinstance(result, Tensor):
                return result  # metadata such as the shape; a property such as `.T` is computed below
        return func(*_dequantized(args), **_dequantized(kwargs))

    def left_multiply(self, x_ND: Tensor) -> Tensor:
        """Return xW, [N, H] float32."""
        assert isinstance(self.stored, QuantizedTensor)
        y_NH = x_ND.new_zeros(len(x_ND), self.shape[1])
        for rows in _parts(self.shape[0], FLOAT_ROWS):
            y_NH.addmm_(x_ND[:, rows], self.stored.rows(rows).dequantize())
        return y_NH


@dataclass(frozen=True)
class SignedColumns:
    """A matrix [D, H] in `int8` codes, in the layout of 8-bit products.

    Attributes:
        parts: [H, at most 16,384] each; the codes of a column are contiguous.
        zero: [H] float32, the value of code 0.
        step: [H] float32, the difference between the values of neighbouring codes.
    """

    encoding: ClassVar[str] = "8-bit products"
    parts: tuple[Tensor, ...]
    zero: Tensor
    step: Tensor

    @classmethod
    def of(cls, stored: QuantizedTensor) -> SignedColumns:
        """Convert a stored matrix: exactly if it has evenly spaced 8-bit codes, otherwise by quantizing it again."""
        spacing = stored.spacing()
        if spacing is None:
            return cls.of(quantize_channels(stored.dequantize()))
        low, step = (each.double().expand(stored.size[1]) for each in spacing)
        codes = stored.parts()[""]
        columns = [part.t().contiguous() for part in torch.split(codes, INT8_ROWS)]
        if codes.dtype == torch.int8:
            return cls(tuple(columns), low.float(), step.float())
        return cls(tuple((each ^ 0x80).view(torch.int8) for each in columns), (low + 128 * step).float(), step.float())

    @property
    def size(self) -> torch.Size:
        """Shape of the matrix."""
        return torch.Size([sum(part.shape[1] for part in self.parts), len(self.zero)])

    def dequantize(self) -> Tensor:
        """Return the matrix [D, H] in float32."""
        return torch.cat([part.t() for part in self.parts]).float().mul_(self.step).add_(self.zero)


class Int8Weight(QuantizedWeight):
    """A quantized weight whose products multiply 8-bit integers.

    Each row of x is rounded, a part at a time, to 255 steps of its own scale, so the result of a video does not depend
    on the other videos of its batch. Sums of codes are exact.

    Args:
        stored: the codes.
    """

    stored: SignedColumns

    def left_multiply(self, x_ND: Tensor) -> Tensor:
        """Return xW, [N, H] float32."""
        y_NH = x_ND.new_zeros(len(x_ND), self.shape[1])
        for x, part in zip(torch.split(x_ND, INT8_ROWS, 1), self.stored.parts, strict=True):
            scale_N1 = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            codes = (x / scale_N1).round_().to(torch.int8)
            rows = torch.split(codes, 1 if len(codes) <= FEW else len(codes))
            y_NH.addcmul_(torch.cat([multiply_int8(row, part.t()) for row in rows]).float(), scale_N1)
        return torch.addcmul(x_ND.sum(1, keepdim=True) * self.stored.zero, y_NH, self.stored.step)


def multiply_int8(a_NK: Tensor, b_KM: Tensor) -> Tensor:
    """Return the product [N, M] of two `int8` matrices in int32, which is exact where `int8_products_gain`.

    `torch._int_mm` is private. No public function of torch multiplies 8-bit integers with 32-bit sums; see
    docs/architecture.md for the alternatives that were measured.
    """
    return torch._int_mm(a_NK, b_KM)


@cache
def int8_products_gain() -> bool:
    """Return True if this CPU has instructions for 8-bit products, and its kernel sums exactly.

    oneDNN's kernel for CPUs without VNNI adds pairs of products in 16 bits, which overflow; torch takes it also where
    `ONEDNN_MAX_CPU_ISA` hides VNNI. So the extremes are multiplied once.
    """
    if not INT8_FLAGS & (cpu_flags() or set()):
        return False
    for x, y in product((-128, 127), repeat=2):
        a, b = torch.full((32, 64), x, dtype=torch.int8), torch.full((48, 64), y, dtype=torch.int8)
        if any(bool((multiply_int8(rows, b.t()) != 64 * x * y).any()) for rows in (a, a[:1])):
            return False
    return True


@cache
def _say_that_fast_is_exact() -> None:
    logger.warning("this CPU has no fast and exact products of 8-bit integers: mode fast computes as exact")


def dequantized_state(state: State, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Dequantize a state dict once.

    The hidden layer's weight is most of a model, so it is never in memory twice: it is written directly in the layout
    in which a product with few rows is fastest, column by column.

    Args:
        state: the weights as they are stored.
        dtype: of the hidden layer's weight, if that is large; all other weights are float32.
    """
    return {name: _by_columns(value, dtype) if name == HIDDEN else _dequantized(value) for name, value in state.items()}


def _by_columns(value: Tensor | QuantizedTensor, dtype: torch.dtype) -> Tensor:
    inputs, outputs = shape = shape_of(value)
    columns = torch.empty(outputs, inputs, dtype=dtype if is_quantized(shape) else torch.float32)
    for rows in _parts(inputs, COPIED_ROWS):
        part = value.rows(rows).dequantize() if isinstance(value, QuantizedTensor) else value[rows]
        columns[:, rows].copy_(part.T)
    return columns.T


def quantized_state(state: State) -> dict[str, Tensor]:
    """Keep the large matrices of a state dict as they are stored, in memory of their own; dequantize the others."""
    return {
        name: QuantizedWeight(_copied(value))
        if isinstance(value, QuantizedTensor) and is_large_matrix(value.size)
        else _dequantized(value)
        for name, value in state.items()
    }


def is_large_matrix(shape: torch.Size) -> bool:
    """Return False for small tensors too, which are in float16 beside coded weights."""
    return len(shape) == 2 and is_quantized(shape)


def _copied(stored: QuantizedTensor) -> QuantizedTensor:
    # The tensors may be mapped pages of the file, which vanish if another process truncates it.
    return type(stored)(*(part.clone() for part in stored.parts().values()))


def fast_state(state: State) -> dict[str, Tensor]:
    """Prepare a state dict for 8-bit products, or dequantize it once where this CPU would not gain by them."""
    if int8_products_gain():
        return int8_state(state)
    _say_that_fast_is_exact()
    return dequantized_state(state)


def int8_state(state: State) -> dict[str, Tensor]:
    """Prepare the large matrices of a state dict for 8-bit products, quantizing those that are stored otherwise.

    Coded matrices whose outputs come first, as in LSTMs, are in no such product and stay as they are stored.
    """
    return {name: _int8_weight(value) for name, value in state.items()}


def _int8_weight(value: Tensor | QuantizedTensor) -> Tensor:
    if not isinstance(value, QuantizedTensor):
        return Int8Weight(SignedColumns.of(quantize_channels(value))) if is_large_matrix(value.shape) else value
    if not is_large_matrix(value.size):
        return value.dequantize()
    if isinstance(value, CodedTensor) and value.outputs_first:  # in no product xW, so its exact values are kept
        return QuantizedWeight(_copied(value))
    return Int8Weight(SignedColumns.of(value))


def _dequantized(value: Any) -> Any:
    """Return an argument with all quantized tensors in it, nested ones too, replaced by float32 tensors."""
    if isinstance(value, QuantizedWeight):
        return value.stored.dequantize()
    if isinstance(value, QuantizedTensor):
        return value.dequantize()
    if isinstance(value, list | tuple):
        return type(value)(map(_dequantized, value))
    return {name: _dequantized(each) for name, each in value.items()} if isinstance(value, dict) else value


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))
