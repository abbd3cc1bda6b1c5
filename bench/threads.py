"""Training steps with OpenMP threads that spin while they wait, sleep, or spin briefly, as the command line has it.

Spinning is OpenMP's default. It is measured on a quiet machine and on one that has other work to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

from measure import Times, options, print_json, print_table, rates, run_rounds, timed
from reeltag.core.environment import OPENMP_SPIN_COUNT

STEPS = 15
SPINNER = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with a bench that is killed
WAYS = {
    "spinning": {},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning briefly": {"GOMP_SPINCOUNT": OPENMP_SPIN_COUNT},
}


def worker() -> None:
    """Time training steps of the AudioSet recipe's NetVLAD on random clips."""
    import torch

    from reeltag.data.loader import Batch
    from reeltag.models.families import parse_config
    from reeltag.models.tagger import build_tagger
    from reeltag.training.replica import Replica
    from reeltag.training.schedule import TrainingSettings

    head = {"prob_gating": True}
    config = parse_config({"family": "netvlad", "clusters": 32, "hidden": 512, "dropout": 0.5, "head": head})
    tagger = build_tagger(config, (128,), 527, 0).train()
    settings = TrainingSettings(frames=8, device="cpu")
    replica = Replica(tagger, settings)
    frames = torch.randint(0, 256, (128, 10, 128), dtype=torch.uint8)
    batch = Batch(("",) * 128, frames, torch.full((128,), 10), torch.rand(128, 527) < 0.005)

    def train(steps: int) -> None:
        for step in range(steps):
            replica.train_step(batch, step)

    train(5)
    print(json.dumps(timed(partial(train, STEPS), STEPS)))


def measure(settings: dict[str, str], busy: bool) -> Times:
    """Seconds a step of a worker; when busy, a loop of Python takes turns with it on every core."""
    spinners = [subprocess.Popen([sys.executable, "-c", SPINNER]) for _ in range(busy * os.cpu_count())]
    try:
        environment = os.environ | settings
        command = [sys.executable, __file__, "worker"]
        return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def main() -> None:
    given = options("Training steps by how OpenMP's threads wait.").parse_args()
    results = {}
    for machine, busy in {"quiet": False, "busy": True}.items():
        rows = {name: partial(measure, settings, busy) for name, settings in WAYS.items()}
        results[machine] = rates(run_rounds(rows, given.rounds), "spinning", "wall")
        print(f"{machine.capitalize()} machine, {given.rounds} rounds, steps\n")
        print_table(results[machine], "spinning")
    print_json(given.json, "threads", rounds=given.rounds, **results)


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
