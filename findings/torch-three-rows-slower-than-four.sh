#!/usr/bin/env bash
# torch 2.13.0, numpy 2.3.5 (CPU, x86-64 with AVX-512, one thread)
#
# Behaviour: the float32 product of a few rows with a large matrix takes as many times one row's time as there are
# rows, up to three, as if the 67 MB of the matrix were read once for each row. Four rows are multiplied at once, so that they
# take less time than three, and eight about as long. A service that happens to batch two or three requests gains
# nothing by it. In bfloat16, one to eight rows take about the same time.
#
# Guess before running: one to eight rows take the time of reading the matrix once, and so do not differ.
#
# Output seen (CPU ms, the least of 15 calls, on a busy machine):
#   rows       1      2      3      4      8
#   float32  3.1    6.4    9.7    6.8    8.1
#   bfloat16 2.8    2.5    2.6    2.8    3.3
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

import torch

torch.set_num_threads(1)
ROWS = (1, 2, 3, 4, 8)
generator = torch.Generator().manual_seed(0)
columns = torch.randn(1024, 16384, generator=generator)


def milliseconds(rows, dtype):
    x, matrix = torch.randn(rows, 16384, generator=generator).to(dtype), columns.to(dtype).T
    times = []
    for _ in range(15):
        begin = time.process_time()
        x @ matrix
        times.append(time.process_time() - begin)
    return 1000 * min(times)


print("rows     " + "".join(f"{rows:>7}" for rows in ROWS))
found = {}
for dtype in (torch.float32, torch.bfloat16):
    found[dtype] = {rows: milliseconds(rows, dtype) for rows in ROWS}
    print(f"{str(dtype).removeprefix('torch.'):<9}" + "".join(f"{each:>7.1f}" for each in found[dtype].values()))
floats, halves = found.values()
sys.exit(not (floats[2] > 1.5 * floats[1] and floats[3] > floats[4] and halves[3] < 1.5 * halves[1]))
PYTHON
