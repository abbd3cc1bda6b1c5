#!/usr/bin/env bash
# torch 2.13.0, numpy 2.3.5 (CPU, x86-64 with AVX-512 and bf16, one thread)
#
# Behaviour: an LSTM over 64 packed sequences takes 1.3 times as long in float32, and 1.8 times in bfloat16, if a single one
# of them is shorter than the others. Where all are equally long, packed or not, torch calls oneDNN's kernel for whole
# layers; else it multiplies step by step, and under autocast converts the weights besides. So the more sequences a
# batch has, the more often it is the slow kind. Two calls, of the longest sequences and of the others, are faster.
#
# Guess before running: the batch with a shorter sequence takes as long as the other, or a little less.
#
# Output seen (CPU ms, the least of 30 calls, on a busy machine):
#            not packed   packed, equal   packed, one shorter
#   float32        4.41            4.75                  6.22
#   bfloat16       2.49            2.81                  5.08
set -euo pipefail
if ! grep -qm1 avx512_bf16 /proc/cpuinfo; then
  echo "this CPU does not multiply bfloat16"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
import time
from contextlib import nullcontext

import torch
from torch.nn.utils.rnn import pack_padded_sequence

torch.set_num_threads(1)
torch.manual_seed(0)
lstm = torch.nn.LSTM(128, 128, batch_first=True, bidirectional=True)
x = torch.randn(64, 10, 128)
equal = torch.full((64,), 10)
shorter = equal.clone()
shorter[3] = 7


def milliseconds(lengths):
    times = []
    for _ in range(30):
        begin = time.process_time()
        lstm(x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        times.append(time.process_time() - begin)
    return 1000 * min(times)


print("          not packed   packed, equal   packed, one shorter")
slower = []
for name, context in (("float32", nullcontext()), ("bfloat16", torch.autocast("cpu", torch.bfloat16))):
    with torch.inference_mode(), context:
        found = [milliseconds(lengths) for lengths in (None, equal, shorter)]
    print(f"{name:<8}" + "".join(f"{each:>{width}.2f}" for each, width in zip(found, (12, 16, 22))))
    slower.append(found[2] > 1.15 * found[1])
sys.exit(not all(slower))
PYTHON
