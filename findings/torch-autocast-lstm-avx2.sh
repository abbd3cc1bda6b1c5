#!/usr/bin/env bash
# torch 2.13.0, numpy 2.3.5 (CPU, x86-64)
#
# Behaviour: on a CPU whose vector instructions end at AVX2 (here by ONEDNN_MAX_CPU_ISA, which oneDNN documents), a
# torch.nn.LSTM raises RuntimeError under torch.autocast("cpu", torch.bfloat16), in inference and in training. The same
# LSTM with its weights converted to bfloat16 computes on the same CPU, and so do GRU, RNN and Linear under autocast:
# autocast sends an LSTM alone to a oneDNN primitive that has no fallback. So neither the CPU nor "bfloat16" decides it,
# but cell and autocast together.
#
# Guess before running: autocast works on every CPU and is only slow without bfloat16 instructions, as for Linear.
#
# Output seen:
#   LSTM   autocast: RuntimeError   converted: ok
#   GRU    autocast: ok             converted: ok
#   RNN    autocast: ok             converted: ok
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

x = torch.randn(2, 5, 8)


def attempt(layer, x, autocast):
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layer(x)
    except RuntimeError:
        return "RuntimeError"
    return "ok"


seen = {}
for name in ("LSTM", "GRU", "RNN"):
    layer = getattr(torch.nn, name)(8, 8, batch_first=True)
    under_autocast = attempt(layer, x, True)
    converted = attempt(layer.bfloat16(), x.bfloat16(), False)
    seen[name] = under_autocast, converted
    print(f"{name:<6} autocast: {under_autocast:<14} converted: {converted}")
expected = {"LSTM": ("RuntimeError", "ok"), "GRU": ("ok", "ok"), "RNN": ("ok", "ok")}
sys.exit(seen != expected)
PYTHON
