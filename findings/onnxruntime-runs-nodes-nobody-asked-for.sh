#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6
#
# Behaviour: a graph has two halves that share nothing, as a joint export of CLIP has one for pictures and one for texts.
# `session.run(["image"], …)` computes both halves each time, and so does a run with
# `RunOptions.only_execute_path_to_fetches`, which is documented as executing only the nodes that the wanted outputs
# need. The inputs of the unwanted half have to be given too. Neither is an error; the time is spent in silence.
#
# Guess before running: by default the whole graph runs, and with the option only the half that was asked for.
#
# Output seen (kernels that the profile of a run lists):
#   option   outputs wanted   kernels run
#   off      image            MatMul, Relu, Softmax
#   off      image, text      MatMul, Relu, Softmax
#   on       image            MatMul, Relu, Softmax
#   on       image, text      MatMul, Relu, Softmax
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

nodes = [
    helper.make_node("Relu", ["picture"], ["image"]),
    helper.make_node("MatMul", ["tokens", "tokens"], ["product"]),
    helper.make_node("Softmax", ["product"], ["text"]),
]
inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in ("picture", "tokens")]
outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in ("image", "text")]
graph = helper.make_graph(nodes, "joint", inputs, outputs)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
feeds = {name: np.ones((64, 64), np.float32) for name in ("picture", "tokens")}


def kernels(only, wanted):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run = onnxruntime.RunOptions()
    run.only_execute_path_to_fetches = only
    session.run(wanted, feeds, run)
    events = json.loads(Path(session.end_profiling()).read_text())
    return sorted(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


print("option   outputs wanted   kernels run")
seen = []
for only in (False, True):
    for wanted in (["image"], ["image", "text"]):
        seen.append(kernels(only, wanted))
        print(f"{'on' if only else 'off':<9}{', '.join(wanted):<17}{', '.join(seen[-1])}")
sys.exit(seen != [["MatMul", "Relu", "Softmax"]] * 4)
PYTHON
