"""Videos trained a CPU second by reeltag and by the authors' graphs under TensorFlow 2, on one core.

Whole steps with forward, backward, clipping and Adam, on batches of 300 frames of 1152 values and 3862 classes.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import Peer, options, pin, print_json, print_table, rates, run_rounds, timed
from models import MODELS, TITLES, Trainer, adam, build, hand_over, random_batch, refuse_difference

BATCH, RECURRENT_BATCH = 80, 32
PRECISIONS = {"reeltag, float32": "32-true", "reeltag, bf16": "bf16-mixed"}


def main() -> None:
    parser = options("Videos trained a CPU second, by reeltag and by the authors' graphs under TensorFlow.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    pin()
    torch.set_num_threads(1)
    results = {name: measure(name, given.peers, given.rounds) for name in given.models}
    print_json(given.json, "train", rounds=given.rounds, models=results)


def measure(name: str, peers: Path, rounds: int) -> dict[str, Any]:
    """Time one model; a function, so that its gigabytes are gone before the next one."""
    size = RECURRENT_BATCH if MODELS[name]["family"] == "rnn" else BATCH
    rows = {}
    with tempfile.TemporaryDirectory() as folder, Peer.find(peers, "peer_tf_models.py") as peer:
        if peer:
            refuse_difference(name, peer, Path(folder))
            rows[peer.name] = partial(peer.ask, "train", name, hand_over(build(name), Path(folder) / "w.npz"), size)
        tagger, batch = build(name), random_batch(size)
        optimizer = adam(tagger)  # one for both, as Adam's moments are two thirds of the memory
        for title, precision in PRECISIONS.items():
            rows[title] = partial(timed, partial(Trainer(tagger, optimizer, precision).step, batch), size)
        found = rates(run_rounds(rows, rounds), peer and peer.name)
    print(f"{TITLES[name]}, batches of {size}, {rounds} rounds on one core, videos\n")
    print_table(found, peer and peer.name)
    return found


if __name__ == "__main__":
    main()
