"""ONNX graphs written like arithmetic: operators and methods of `Value` add nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 21, 10

Operand: TypeAlias = "Value | npt.NDArray[Any] | float"


@dataclass
class Graph:
    """ONNX model that grows node by node; equal nodes and constants are added once.

    Attributes:
        model: the ONNX model.
    """

    model: onnx.ModelProto = field(default_factory=lambda: onnx.ModelProto(ir_version=IR_VERSION))
    _known: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)

    def input(self, name: str, dtype: int, shape: Sequence[str | int]) -> Value:
        """Add an input of the model; a dimension with a name has no fixed length."""
        self.model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
        return Value(self, name)

    def output(self, name: str, value: Value, dtype: int, shape: Sequence[str | int]) -> None:
        """Add an output of the model under this name."""
        self.model.graph.node.append(helper.make_node("Identity", [value.name], [name]))
        self.model.graph.output.append(helper.make_tensor_value_info(name, dtype, shape))

    def add(self, operator: str, *inputs: Operand | None, **attributes: Any) -> Value:
        """Add a node with one output; None stands for an omitted input."""
        return self.add_several(1, operator, *inputs, **attributes)[0]

    def add_several(self, count: int, operator: str, *inputs: Operand | None, **attributes: Any) -> list[Value]:
        """Add a node with several outputs."""
        names = ["" if each is None else self.value(each).name for each in inputs]
        key = (operator, *names, repr(attributes), count)
        if key not in self._known:
            name = f"{operator}_{len(self.model.graph.node)}"
            outputs = [name] if count == 1 else [f"{name}_{number}" for number in range(count)]
            self.model.graph.node.append(helper.make_node(operator, names, outputs, **attributes))
            self._known[key] = outputs
        return [Value(self, name) for name in self._known[key]]

    def value(self, operand: Operand) -> Value:
        """Return an operand as a value: numbers become float32 constants, arrays become constants."""
        if isinstance(operand, Value):
            return operand
        array = np.asarray(operand, np.float32) if isinstance(operand, float | int) else np.ascontiguousarray(operand)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"constant_{len(self.model.graph.initializer)}"
            self._known[key] = [self.initialize(numpy_helper.from_array(array, name)).name]
        return Value(self, self._known[key][0])

    def initialize(self, tensor: onnx.TensorProto) -> Value:
        """Add an initializer, unless its name was added before."""
        key = ("initializer", tensor.name)
        if key not in self._known:
            self._known[key] = [tensor.name]
            self.model.graph.initializer.append(tensor)
        return Value(self, tensor.name)


@dataclass(frozen=True)
class Value:
    """Tensor of a graph.

    Attributes:
        graph: the graph that computes it.
        name: unique in the graph.
    """

    graph: Graph
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.graph.add("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.add("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.add("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.add("Div", self, other)

    def __matmul__(self, other: Operand) -> Value:
        return self.graph.add("MatMul", self, other)

    def cast(self, dtype: int) -> Value:
        """Cast to another ONNX type."""
        return self.graph.add("Cast", self, to=dtype)

    def sum(self, axis: int, keep: bool = True) -> Value:
        """Sum over an axis."""
        return self.graph.add("ReduceSum", self, integers(axis), keepdims=int(keep))

    def square_sum(self, axis: int) -> Value:
        """Sum the squares over an axis and keep the axis."""
        return self.graph.add("ReduceSumSquare", self, integers(axis), keepdims=1)

    def max(self, axis: int) -> Value:
        """Take the maximum over an axis and drop the axis."""
        return self.graph.add("ReduceMax", self, integers(axis), keepdims=0)

    def softmax(self, axis: int = -1) -> Value:
        """Apply softmax along an axis."""
        return self.graph.add("Softmax", self, axis=axis)

    def sigmoid(self) -> Value:
        """Return 1 / (1 + exp(-x)); the Sigmoid of onnxruntime is 0 below -18 and not monotone from there to -12."""
        return self.graph.add("Reciprocal", self.graph.add("Exp", self.graph.add("Neg", self)) + 1.0)

    def at_most(self, high: int) -> Value:
        """Limit integers to a maximum."""
        return self.graph.add("Min", self, np.array(high))

    def clip(self, low: float | None, high: float | None = None) -> Value:
        """Limit values to a range."""
        return self.graph.add("Clip", self, low, high)

    def rsqrt(self, least: float) -> Value:
        """Return 1 / √max(x, least)."""
        return self.graph.add("Reciprocal", self.graph.add("Sqrt", self.clip(least)))

    def transpose(self, *order: int) -> Value:
        """Reorder the axes."""
        return self.graph.add("Transpose", self, perm=list(order))

    def reshape(self, *shape: int) -> Value:
        """Change the shape; 0 keeps a length and -1 is inferred."""
        return self.graph.add("Reshape", self, integers(*shape))

    def unsqueeze(self, axis: int) -> Value:
        """Insert an axis of length 1."""
        return self.graph.add("Unsqueeze", self, integers(axis))

    def squeeze(self, axis: int) -> Value:
        """Remove an axis of length 1."""
        return self.graph.add("Squeeze", self, integers(axis))

    def slice(self, axis: int, begin: int, end: int) -> Value:
        """Return the positions from `begin` to before `end` of an axis."""
        return self.graph.add("Slice", self, integers(begin), integers(end), integers(axis))

    def split(self, sizes: Sequence[int], axis: int) -> list[Value]:
        """Split along an axis."""
        if len(sizes) == 1:
            return [self]
        return self.graph.add_several(len(sizes), "Split", self, integers(*sizes), axis=axis)


def concat(values: Sequence[Value], axis: int) -> Value:
    """Concatenate values along an axis."""
    return values[0].graph.add("Concat", *values, axis=axis) if len(values) > 1 else values[0]


def integers(*values: int) -> npt.NDArray[np.int64]:
    """Return integers as an int64 array, as ONNX takes shapes and axes."""
    return np.array(values, np.int64)
