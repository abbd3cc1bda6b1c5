"""bfloat16 on CPUs without all of its kernels, simulated by limiting oneDNN and ATen to AVX2."""

import json
import os
import subprocess
import sys

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
PROGRAM = """
import json, torch
from reeltag.data.loader import Batch
from reeltag.inference.ensemble import Ensemble
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.training.replica import Replica
from reeltag.training.schedule import TrainingSettings

frames = torch.randint(0, 256, (4, 10, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
batch = Batch(tuple("abcd"), frames, torch.tensor([10, 3, 7, 1]), torch.eye(4, 5, dtype=torch.bool))
differences = {}
for cell in ("lstm", "gru", "gru-torch"):
    config = parse_config({"family": "rnn", "cell": cell, "cells": 8}, (16,))
    exact = build_tagger(config, (16,), 5, 0).eval()
    bf16 = Ensemble([build_tagger(config, (16,), 5, 0)], [1.0], bf16=True).eval()
    with torch.inference_mode():
        probabilities = [bf16(batch.frames, batch.lengths) for _ in range(3)]
        differences[f"{cell}, tag"] = float((probabilities[-1] - exact(batch.frames, batch.lengths)).abs().max())
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        replica = Replica(build_tagger(config, (16,), 5, 0), TrainingSettings(precision=precision, device="cpu"))
        replica.set_learning_rate(1e-3, 0)
        losses.append([replica.train_step(batch, seed) for seed in range(3)][-1])
    differences[f"{cell}, train"] = abs(losses[0] - losses[1]) / losses[0]
print(json.dumps(differences))
"""


def test_recurrent_layers_compute_without_their_bfloat16_kernels():
    environment = os.environ | AVX2 | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert len(differences) == 6
    assert max(differences.values()) < 0.02, differences
    assert done.stderr.count("no bfloat16 kernel for LSTM") == 1, "the warning is logged once"
