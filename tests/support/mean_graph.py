"""A small ONNX extractor: the means of a picture of 8 × 8."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_mean_graph(path: Path) -> Path:
    """Write the graph, from pictures [N, 3, 8, 8] to values [N, 3]."""
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    shapes = (("x", ["N", 3, 8, 8]), ("y", None))
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    graph = helper.make_graph([mean], "g", [first], [last])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
