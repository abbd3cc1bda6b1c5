#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, numpy 2.3.5 (CPU)
#
# Behaviour: the maximum over an axis or a picture loses a NaN, unless the NaN is the first of the elements: ReduceMax,
# GlobalMaxPool and MaxPool return the largest of the others. Max of two tensors, Relu and averages do pass it on, and so
# does NumPy everywhere. It is so with and without optimizations. So an encoder that pools by maximum makes a vector of
# finite values from an input with NaN, and a check of its output for NaN does not find the fault.
#
# Guess before running: all of these pass NaN on, as numpy.max does.
#
# Output seen (places of 16 where one NaN leads to a NaN in the results):
#   ReduceMax           1
#   GlobalMaxPool       1
#   MaxPool 4 x 4       1
#   Max with 0         16
#   Relu               16
#   GlobalAveragePool  16
#   numpy.max          16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def session(node, optimizations):
    """Open a graph of one node, from pictures [1, 1, 4, 4]."""
    constants = [numpy_helper.from_array(np.float32(0), "zero")] if "zero" in node.input else []
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])]
    graph = helper.make_graph([node], "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = optimizations
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def passed_on(function):
    """Count the places where one NaN leads to a NaN in the results."""
    count = 0
    for place in range(16):
        x = np.random.default_rng(place).standard_normal((1, 1, 4, 4)).astype(np.float32)
        x.flat[place] = np.nan
        count += bool(np.isnan(function(x)).any())
    return count


nodes = {
    "ReduceMax": helper.make_node("ReduceMax", ["x"], ["y"], axes=[2, 3]),
    "GlobalMaxPool": helper.make_node("GlobalMaxPool", ["x"], ["y"]),
    "MaxPool 4 x 4": helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[4, 4]),
    "Max with 0": helper.make_node("Max", ["x", "zero"], ["y"]),
    "Relu": helper.make_node("Relu", ["x"], ["y"]),
    "GlobalAveragePool": helper.make_node("GlobalAveragePool", ["x"], ["y"]),
}
levels = onnxruntime.GraphOptimizationLevel
seen = {}
for name, node in nodes.items():
    opened = [session(node, level) for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL)]
    counts = {passed_on(lambda x, each=each: each.run(None, {"x": x})[0]) for each in opened}
    seen[name] = counts.pop() if len(counts) == 1 else counts
seen["numpy.max"] = passed_on(np.max)
for name, count in seen.items():
    print(f"{name:<18}", f"{count:>2}")
sys.exit(list(seen.values()) != [1, 1, 1, 16, 16, 16, 16])
PYTHON
