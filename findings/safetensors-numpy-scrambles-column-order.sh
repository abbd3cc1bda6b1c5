#!/usr/bin/env bash
# safetensors 0.8.0 against 0.7.0, numpy 2.3.5
#
# Behaviour: safetensors.numpy.save writes an array whose columns are contiguous in the order of its memory, but under
# its shape, so that it comes back scrambled, without an error; 0.7.0 wrote it right. A saved array need not look
# transposed where it is saved: arithmetic, np.round and astype(int8) keep the order of w.T, so the codes of a
# transposed weight are such an array although each step made a new one. Shape, dtype and histogram of the codes stay
# right.
#
# Guess before running: results of arithmetic are new arrays in row order, so the codes come back right, from both
# versions alike.
#
# Output seen:
#   codes: row order False, column order True
#   0.7.0: int8 (8, 16), equal True, same histogram True
#   0.8.0: int8 (8, 16), equal False, same histogram True
#   0.8.0 after np.ascontiguousarray: int8 (8, 16), equal True, same histogram True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/save.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

w = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
scale = np.abs(w).max(0)[:, None] / 127
codes = np.round(w.T / scale).astype(np.int8)


def show(name, saved):
    """Print how an array comes back; return True if it is equal."""
    loaded = load(save({"codes": saved}))["codes"]
    equal, same = np.array_equal(loaded, codes), np.array_equal(np.sort(loaded, None), np.sort(codes, None))
    print(f"{name}: {loaded.dtype} {loaded.shape}, equal {equal}, same histogram {same}")
    return equal


version = safetensors.__version__
if version == "0.7.0":
    print(f"codes: row order {codes.flags.c_contiguous}, column order {codes.flags.f_contiguous}")
    sys.exit(not show(version, codes))
equal = show(version, codes)
equal_copied = show(f"{version} after np.ascontiguousarray", np.ascontiguousarray(codes))
sys.exit(equal or not equal_copied)
PYTHON
for version in 0.7.0 0.8.0; do
  python3 -m venv "$folder/venv-$version"
  "$folder/venv-$version/bin/python" -m pip install --quiet "safetensors==$version" numpy==2.3.5
  "$folder/venv-$version/bin/python" "$folder/save.py"
done
