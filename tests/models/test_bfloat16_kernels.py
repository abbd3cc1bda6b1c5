"""bfloat16 on CPUs that lack some of its kernels, in processes that oneDNN and ATen limit to AVX2."""

import os
import subprocess
import sys

import pytest

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
BATCH = """
import sys, torch
from reeltag.data.loader import Batch
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
config = parse_config({"family": "rnn", "cell": sys.argv[1], "cells": 8}, (16,))
frames = torch.randint(0, 256, (4, 10, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
batch = Batch(tuple("abcd"), frames, torch.tensor([10, 3, 7, 1]), torch.eye(4, 5, dtype=torch.bool))
"""
TAG = (
    BATCH
    + """
from reeltag.inference.ensemble import Ensemble
exact = build_tagger(config, (16,), 5, 0).eval()
bf16 = Ensemble([build_tagger(config, (16,), 5, 0)], [1.0], bf16=True).eval()
with torch.inference_mode():
    for _ in range(3):
        difference = (bf16(batch.frames, batch.lengths) - exact(batch.frames, batch.lengths)).abs().max()
print(float(difference))
"""
)
TRAIN = (
    BATCH
    + """
from reeltag.training.replica import Replica
from reeltag.training.schedule import TrainingSettings
losses = []
for precision in ("32-true", "bf16-mixed"):
    replica = Replica(build_tagger(config, (16,), 5, 0), TrainingSettings(precision=precision, device="cpu"))
    replica.set_learning_rate(1e-3, 0)
    losses.append([replica.train_step(batch, seed) for seed in range(3)][-1])
print(abs(losses[0] - losses[1]) / losses[0])
"""
)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru-torch"])
@pytest.mark.parametrize("program", [TAG, TRAIN], ids=["tag", "train"])
def test_bfloat16_of_recurrent_layers_without_their_kernels(program, cell):
    environment = os.environ | AVX2 | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, cell], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.02
    remarks = [line for line in done.stderr.splitlines() if "no bfloat16 kernel for LSTM" in line]
    assert len(remarks) == (cell == "lstm"), "one remark, however often it computes"
