#!/usr/bin/env bash
# nncodec 2.1.3 (ISO/IEC 15938-17), numpy 1.26.4, Python 3.11; pip compiles its extension, which takes a C++ compiler
#
# Behaviour: a weight of 3 among 4,096 of a standard deviation of 0.05. With a quantization parameter (qp) it comes back
# within 0.002. With a bit depth (int_quant_bw; `bitdepth` in nncodec.nn and nncodec.tensor) it comes back as 0.19, at 8
# bits and at 24 alike, without a message: the step is the 99.95th percentile of the magnitudes divided by the largest
# code, and what is beyond is cut. More bits make the file larger and leave that error as it is, while the file of the
# qp is about as small as that of 8 bits. The same row of weights as a tensor of its own keeps the 3, because among 64
# elements that percentile lies close to the maximum.
#
# Guess before running: at 16 bits the 3 comes back within 0.0001.
#
# Output seen:
#   qp -38     3,478 bytes   of 4,096: 3.0015   of 64: 3.0000
#   8 bits     3,346 bytes   of 4,096: 0.1860   of 64: 2.9766
#   16 bits    7,600 bytes   of 4,096: 0.1875   of 64: 2.9999
#   24 bits   11,816 bytes   of 4,096: 0.1875   of 64: 3.0000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-deps nncodec==2.1.3 numpy==1.26.4
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import types

import numpy as np

# nncodec.framework adapts the codec to PyTorch and TensorFlow and has demonstrations that import torchvision and more.
# The codec imports it, and does not use it for a dict of arrays.
framework = types.ModuleType("nncodec.framework")
framework.tensorflow_model = framework.pytorch_model = framework.use_case_init = None
sys.modules["nncodec.framework"] = framework
from nncodec import nnc  # noqa: E402

matrix = np.random.default_rng(0).normal(0, 0.05, (64, 64)).astype(np.float32)
matrix[3, 5] = 3
seen = {}
for name, arguments in {
    "qp -38": {"qp": -38},
    "8 bits": {"int_quant_bw": 8},
    "16 bits": {"int_quant_bw": 16},
    "24 bits": {"int_quant_bw": 24},
}.items():
    stream = nnc.compress(
        {"matrix": matrix, "row": matrix[3].copy()}, bitstream_path=None, return_bitstream=True, **arguments
    )
    decoded = nnc.decompress(stream)
    seen[name] = len(stream), decoded["matrix"][3, 5], decoded["row"][5]
    print(f"{name:<8} {len(stream):>7,} bytes   of 4,096: {seen[name][1]:.4f}   of 64: {seen[name][2]:.4f}")
exact = abs(seen["qp -38"][1] - 3) < 0.01 and all(abs(row - 3) < 0.05 for _, _, row in seen.values())
cut = all(abs(seen[name][1] - 0.1875) < 0.005 for name in ("8 bits", "16 bits", "24 bits"))
sizes = [seen[name][0] for name in ("8 bits", "16 bits", "24 bits")]
sys.exit(not (exact and cut and sizes == sorted(sizes)))
PYTHON
