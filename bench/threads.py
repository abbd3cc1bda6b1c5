"""Training steps a second with spinning and with sleeping OpenMP threads, on a quiet and on a busy machine.

Spinning is the default. On a machine that has other work to do, OMP_WAIT_POLICY=PASSIVE in the environment
is worth more than it costs; this measures both. Rounds take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from statistics import median

ROUNDS, STEPS = 5, 40


def worker() -> None:
    """Time training steps of the AudioSet recipe's NetVLAD on random clips."""
    import torch
    from lightning_fabric import Fabric

    from reeltag.data.batches import Batch
    from reeltag.models.tagger import build_tagger, parse_config
    from reeltag.train import TrainingSettings, train_step

    head = {"prob_gating": True}
    config = parse_config({"family": "netvlad", "clusters": 32, "hidden": 512, "dropout": 0.5, "head": head})
    tagger = build_tagger(config, (128,), 527, 0).train()
    settings = TrainingSettings(frames=8, device="cpu")
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(tagger, torch.optim.Adam(tagger.parameters(), fused=True))
    frames = torch.randint(0, 256, (128, 10, 128), dtype=torch.uint8)
    batch = Batch(("",) * 128, frames, torch.full((128,), 10), torch.rand(128, 527) < 0.005)
    for step in range(5):
        train_step(fabric, model, optimizer, batch, settings, step)
    begin = time.perf_counter()
    for step in range(STEPS):
        train_step(fabric, model, optimizer, batch, settings, step)
    print(STEPS / (time.perf_counter() - begin))


def measure(policy: str, busy: bool) -> float:
    """Steps a second of a worker; when busy, a loop of Python takes turns with it on every core."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy * os.cpu_count())]
    try:
        environment = os.environ | {"OMP_WAIT_POLICY": policy}
        command = [sys.executable, __file__, "worker"]
        return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def main() -> None:
    """Print a table; with --json, one JSON line last."""
    rows = {}
    for busy in (False, True):
        rounds = [(measure("ACTIVE", busy), measure("PASSIVE", busy)) for _ in range(ROUNDS)]
        ratios = [passive / active for active, passive in rounds]
        rows["busy" if busy else "quiet"] = {
            "active": median(active for active, _ in rounds),
            "passive": median(passive for _, passive in rounds),
            "ratio": [median(ratios), min(ratios), max(ratios)],
        }
    print(f"{'machine':<9}{'spinning':>10}{'sleeping':>10}   ratio (min to max), steps a second")
    for name, row in rows.items():
        middle, low, high = row["ratio"]
        print(f"{name:<9}{row['active']:>10.2f}{row['passive']:>10.2f}   {middle:.2f} ({low:.2f} to {high:.2f})")
    if "--json" in sys.argv:
        print(json.dumps(rows))


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
