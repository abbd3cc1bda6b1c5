"""Stored weights as initializers of an ONNX graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from reeltag.artifact.onnx.graph import Graph, Value
from reeltag.artifact.quantization.encodings import (
    CodebookTensor,
    CodedTensor,
    GroupTensor,
    HalfTensor,
    QuantizedTensor,
    State,
)
from reeltag.artifact.quantization.linear import is_large_matrix
from reeltag.artifact.quantization.quantize import quantize_channels
from reeltag.artifact.quantization.sizes import GROUP

# A larger matrix is multiplied in pieces of this many elements, so that dequantizing it in every call needs little
# memory. Pieces have a multiple of 256 rows, the block size of 8-bit kernels.
PIECE, PIECE_ROWS = 1 << 23, 256

_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
}


@dataclass(frozen=True)
class Weights:
    """Weights of a model or of one of its modules, by name.

    Attributes:
        graph: receives the initializers.
        state: of the model.
        member: name of the model, the prefix of all initializers.
        prefix: path of the module, with a dot at its end.
        int8: quantize large factors of products that are stored otherwise to evenly spaced 8-bit codes.
    """

    graph: Graph
    state: State
    member: str
    prefix: str = ""
    int8: bool = False

    def of(self, *path: object) -> Weights:
        """Return the weights of a submodule."""
        return replace(self, prefix=self.prefix + "".join(f"{name}." for name in path))

    def has(self, name: str) -> bool:
        """Return True if there is a weight of this name."""
        return self.prefix + name in self.state

    def stored(self, name: str) -> Tensor | QuantizedTensor:
        """Return a weight as it is stored."""
        return self.state[self.prefix + name]

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """Return a small weight in float32, for computation during export."""
        value = self.stored(name)
        floats = value.dequantize() if isinstance(value, QuantizedTensor) else value
        array: npt.NDArray[np.float32] = floats.numpy()
        return array

    def floats(self, name: str) -> Value:
        """Return a weight in float32; codes are dequantized in the graph."""
        stored, name = self.stored(name), self._full(name)
        affine = _Affine.of(stored)
        if affine is not None:
            return self._dequantized(affine, name) + affine.rest
        if isinstance(stored, CodedTensor):  # its outputs come first
            steps = self._initializer(stored.steps.float().flatten(), f"{name}#scale")
            return self.graph.add("DequantizeLinear", self._initializer(stored.codes, name), steps, axis=0)
        if isinstance(stored, CodebookTensor):
            codes = self._initializer(stored.codes, name).cast(TensorProto.INT32)
            return self.graph.add("Gather", self._initializer(stored.codebook, f"{name}#codebook"), codes)
        if isinstance(stored, GroupTensor):
            return self._groups(stored, name)
        if isinstance(stored, HalfTensor):
            return self._initializer(stored.half, name).cast(TensorProto.FLOAT)
        assert isinstance(stored, Tensor), name
        return self._initializer(stored, name)

    def product(self, x: Value, name: str) -> Value:
        """Return xW with W [D, H]; 8 bits become DequantizeLinear and MatMul, which engines with 8-bit kernels fuse."""
        affine = _Affine.of(self.stored(name))
        if affine is None and self.int8 and is_large_matrix((values := torch.from_numpy(self.array(name))).shape):
            affine = _Affine.of(quantize_channels(values))
        if affine is None:
            return x @ self.floats(name)
        rows, columns = affine.codes.shape
        step = max(PIECE // columns // PIECE_ROWS, 1) * PIECE_ROWS
        begins = range(0, rows, step)
        pieces = zip(begins, x.split([min(step, rows - begin) for begin in begins], axis=-1), strict=True)
        parts = [
            piece @ self._dequantized(affine.rows(begin, begin + step), f"{self._full(name)}@{begin}")
            for begin, piece in pieces
        ]
        y = self.graph.add("Sum", *parts) if len(parts) > 1 else parts[0]
        return y + x.sum(-1) * affine.rest

    def _full(self, name: str) -> str:
        return f"{self.member}/{self.prefix}{name}"

    def _dequantized(self, affine: _Affine, name: str) -> Value:
        codes, scale = self._initializer(affine.codes, name), self._initializer(affine.scale, f"{name}#scale")
        return self.graph.add("DequantizeLinear", codes, scale, self._initializer(affine.zero, f"{name}#zero"), axis=1)

    def _groups(self, stored: GroupTensor, name: str) -> Value:
        groups, shape = stored.groups.shape[1], stored.shape.tolist()
        raw = stored.packed.numpy().tobytes()
        codes = self._proto(onnx.TensorProto(data_type=TensorProto.UINT4, dims=[groups, GROUP], raw_data=raw), name)
        low, step = (self._initializer(part, f"{name}#groups{row}") for row, part in enumerate(stored.groups))
        low_G1, step_G1 = (each.cast(TensorProto.FLOAT).unsqueeze(1) for each in (low, step))
        # Not DequantizeLinear: without an 8-bit kernel it is better to dequantize once than in every call.
        values = (codes.cast(TensorProto.FLOAT) * step_G1 + low_G1).reshape(-1)
        return values.slice(0, 0, math.prod(shape)).reshape(*shape)

    def _initializer(self, tensor: Tensor, name: str) -> Value:
        raw = tensor.contiguous().numpy().tobytes()
        return self._proto(onnx.TensorProto(data_type=_TYPES[tensor.dtype], dims=tensor.shape, raw_data=raw), name)

    def _proto(self, proto: onnx.TensorProto, name: str) -> Value:
        proto.name = name
        return self.graph.initialize(proto)


@dataclass(frozen=True)
class _Affine:
    """8-bit codes of evenly spaced values, value = scale·(code − zero) + rest.

    ONNX's zero points are integers. `rest` is the remainder of the true zero point; a product adds it as Σx·rest. Where
    it is 0, that keeps the NaN of x, which the 8-bit kernel of onnxruntime loses.

    Attributes:
        codes: `uint8` or `int8`, in the tensor's shape.
        scale: [] or [H].
        zero: of the type of the codes, in the shape of `scale`.
        rest: float32, in the shape of `scale`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    rest: npt.NDArray[np.float32]

    @classmethod
    def of(cls, stored: Tensor | QuantizedTensor) -> _Affine | None:
        """Convert a stored tensor; return None unless it has 8-bit codes of evenly spaced values."""
        if isinstance(stored, Tensor) or (spacing := stored.spacing()) is None:
            return None
        low, step = (each.double() for each in spacing)
        codes = stored.parts()[""]
        limits = torch.iinfo(codes.dtype)
        zero = torch.where(step > 0, -low / step, 0.0).round().clamp(limits.min, limits.max)
        rest = (low + step * zero).float().numpy()
        return cls(codes, step.float(), zero.to(codes.dtype), rest)

    def rows(self, begin: int, end: int) -> _Affine:
        """Return some rows of a matrix."""
        return _Affine(self.codes[begin:end], self.scale, self.zero, self.rest)
