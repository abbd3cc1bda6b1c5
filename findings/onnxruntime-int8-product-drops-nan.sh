#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, numpy 2.3.5 (CPU, x86-64 with AVX-512 and VNNI; on another CPU it says so and ends
# with 0)
#
# Behaviour: a float32 product x @ DequantizeLinear(W) with 8-bit weights no longer passes on NaN under the default
# settings of a session. The graph quantizes nothing but W, yet from the extended optimizations on it becomes one
# MatMulNBits that also rounds x to int8, in blocks of 32 elements with a scale of their own. A single NaN in a row is
# rounded to 0: the row's result is finite and equals, bit for bit, that of a row with 0 in that place. Of the 32 places
# of a block only one lets a NaN through. An infinity does come through everywhere, as NaN, so the results show infinite
# inputs and hide NaN. With session.qdq_matmulnbits_accuracy_level=1 all is as without optimizations.
#
# Guess before running: the kernel rounds x to int8 at most; a NaN in x still makes its row of results NaN.
#
# Output seen (places of 256 where one NaN, or one infinity, leaves the row of results finite):
#   no optimizations   MatMul        NaN:   0   infinity: 0
#   default            MatMulNBits   NaN: 248   infinity: 0
#   accuracy level 1   MatMulNBits   NaN:   0   infinity: 0
#   default: a row with NaN gives the result of a row with 0: True
set -euo pipefail
if ! grep -qm1 avx512_vnni /proc/cpuinfo; then
  echo "this CPU has no AVX-512 with VNNI"
  exit 0
fi
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

D, H = 256, 64
generator = np.random.default_rng(0)
weights = {
    "codes": generator.integers(0, 256, (D, H)).astype(np.uint8),
    "scale": generator.uniform(0.001, 0.01, H).astype(np.float32),
    "zero": np.full(H, 128, np.uint8),
}
nodes = [
    helper.make_node("DequantizeLinear", list(weights), ["w"], axis=1),
    helper.make_node("MatMul", ["x", "w"], ["y"]),
]
x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", D])
y_info = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", H])
initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
graph = helper.make_graph(nodes, "product", [x_info], [y_info], initializers)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model)


def session(level, entries):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    options.optimized_model_filepath = "optimized.onnx"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return opened, onnx.load("optimized.onnx").graph.node[-1].op_type


def finite(opened, value):
    """Count the places where one such element leaves the row of results finite."""
    x = generator.standard_normal((D, D)).astype(np.float32)
    np.fill_diagonal(x, value)
    return int(np.isfinite(opened.run(None, {"x": x})[0]).all(1).sum())


levels = onnxruntime.GraphOptimizationLevel
settings = {
    "no optimizations": (levels.ORT_DISABLE_ALL, {}),
    "default": (onnxruntime.SessionOptions().graph_optimization_level, {}),
    "accuracy level 1": (levels.ORT_ENABLE_ALL, {"session.qdq_matmulnbits_accuracy_level": "1"}),
}
seen = {}
for name, setting in settings.items():
    opened, kind = session(*setting)
    seen[name] = kind, finite(opened, np.nan), finite(opened, np.inf)
    print(f"{name:<18} {kind:<13} NaN: {seen[name][1]:>3}   infinity: {seen[name][2]}")
opened, _ = session(*settings["default"])
x = generator.standard_normal((2, D)).astype(np.float32)
x[1] = x[0]
x[:, 5] = np.nan, 0
with_nan, with_zero = opened.run(None, {"x": x})[0]
same = np.array_equal(with_nan, with_zero)
print(f"default: a row with NaN gives the result of a row with 0: {same}")
expected = {
    "no optimizations": ("MatMul", 0, 0),
    "default": ("MatMulNBits", 248, 0),
    "accuracy level 1": ("MatMulNBits", 0, 0),
}
sys.exit(seen != expected or not same)
PYTHON
