#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU), onnx 1.23.2, numpy 2.4.6
#
# Behaviour: the maximum of values of which one is NaN. MaxPool, GlobalMaxPool and ReduceMax return NaN, the maximum
# of the other values, or that of some of them, according to where in the window the NaN stands; an operator and a
# size of the window have places of their own. The activations Relu, Clip, Sigmoid and Softmax keep NaN. So a network
# with a MaxPool in its stem gives ordinary features for most inputs whose first layer gave NaN, and a check of its
# output finds nothing. torch's max_pool2d and amax, and numpy's max, return NaN for every place. Places may be others
# with other vector instructions.
#
# Guess before running: NaN is kept wherever it stands, as by torch and numpy.
#
# Output seen (windows of the numbers from 1, one of them NaN; the result for each of its places):
#   MaxPool 2 x 2          4.0   4.0   4.0   nan
#   GlobalMaxPool 2 x 2    4.0   4.0   4.0   nan
#   ReduceMax 2 x 2        nan   3.0   4.0   3.0
#   MaxPool 3 x 3          9.0   9.0   9.0   9.0   9.0   9.0   9.0   nan   8.0
#   GlobalMaxPool 3 x 3    9.0   9.0   9.0   9.0   9.0   9.0   9.0   nan   8.0
#   ReduceMax 3 x 3        nan   9.0   9.0   9.0   9.0   9.0   9.0   9.0   8.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def maximum(operator, window):
    """Compute the maximum of a window [side, side]."""
    settings = {"kernel_shape": window.shape} if operator == "MaxPool" else {}
    shapes = (("x", [1, 1, *window.shape]), ("y", None))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], **settings)], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": window[None, None]})[0].item()


dropped = []
for side in (2, 3):
    for operator in ("MaxPool", "GlobalMaxPool", "ReduceMax"):
        found = []
        for place in range(side * side):
            window = np.arange(1, side * side + 1, dtype=np.float32)
            window[place] = np.nan
            found.append(maximum(operator, window.reshape(side, side)))
        print(f"{operator} {side} x {side}".ljust(20), *(f"{value:4.1f}" for value in found), sep="  ")
        dropped.append(not np.isnan(found).all())
sys.exit(not all(dropped))
PYTHON
