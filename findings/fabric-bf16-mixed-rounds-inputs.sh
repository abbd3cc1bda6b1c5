#!/usr/bin/env bash
# lightning-fabric 2.6.6, torch 2.13.0, numpy 2.3.5 (CPU)
#
# Behaviour: with precision="bf16-mixed", a module set up by Fabric receives every floating-point argument already
# rounded to bfloat16. Operations that autocast leaves in float32, such as a sum of squares or a normalisation of the
# input, then compute on 8-bit mantissas in bfloat16. Under torch.autocast, which Fabric uses for the forward pass, the
# same module receives float32. Integer arguments are passed on as they are, so a model fed with uint8 does not show it.
#
# Guess before running: "bf16-mixed" is torch.autocast, so the module sees its arguments in float32.
#
# Output seen:
#   torch.autocast: module receives torch.float32, norm is torch.float32
#   Fabric:         module receives torch.bfloat16, norm is torch.bfloat16
#   uint8 argument under Fabric: torch.uint8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning-fabric==2.6.6 torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys

import torch
from lightning_fabric import Fabric

logging.disable()


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x):
        self.received, self.norm = x.dtype, x.square().mean(1).dtype
        return self.linear(x.float())


x = torch.randn(2, 4)
plain = Module()
with torch.autocast("cpu", torch.bfloat16):
    plain(x)
print(f"torch.autocast: module receives {plain.received}, norm is {plain.norm}")
fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
module = fabric.setup(Module())
module(x)
inner = module.module
seen = [plain.received, plain.norm, inner.received, inner.norm]
print(f"Fabric:         module receives {inner.received}, norm is {inner.norm}")


class Codes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, codes):
        self.received = codes.dtype
        return self.linear(codes.float())


codes = fabric.setup(Codes())
codes(torch.zeros(2, 4, dtype=torch.uint8))
seen.append(codes.module.received)
print(f"uint8 argument under Fabric: {seen[-1]}")
sys.exit(seen != [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.uint8])
PYTHON
