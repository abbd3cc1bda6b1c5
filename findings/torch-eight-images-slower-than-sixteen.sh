#!/usr/bin/env bash
# torch 2.13.0, numpy 2.3.5 (CPU, x86-64 with AVX-512, one thread)
#
# Behaviour: with one thread, a 1 × 1 convolution in float32 goes to oneDNN from 16 images on, and below to im2col and the
# general matrix product. The same 32,768 pixels, in memory that is the same to the byte, take 1.7 times as long
# in 8 images as in 16. A matrix product with a weight of many rows is such a convolution, and as one faster than `@`.
#
# Guess before running: how pixels are divided among images makes no difference.
#
# Output seen (CPU ms, the least of 7 calls, on a busy machine):
#   images         8     16     64     x @ W.T
#                88     51     51          88
set -euo pipefail
if ! grep -qm1 avx512f /proc/cpuinfo; then
  echo "measured on AVX-512 only"
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
generator = torch.Generator().manual_seed(0)
weight, x = torch.randn(32768, 1024, generator=generator), torch.randn(80, 1024, generator=generator)


def convolved(images):
    pixels = weight.view(images, -1, 1, 1024).movedim(3, 1)  # channels last, not copied
    return torch.nn.functional.conv2d(pixels, x[..., None, None])


def milliseconds(call):
    times = []
    for _ in range(7):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return 1000 * min(times)


found = [milliseconds(lambda images=images: convolved(images)) for images in (8, 16, 64)]
print("images         8     16     64     x @ W.T")
print(" " * 10 + "".join(f"{each:>7.0f}" for each in found) + f"{milliseconds(lambda: x @ weight.T):>12.0f}")
sys.exit(not found[0] > 1.2 * found[1])
PYTHON
