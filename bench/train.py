"""Videos trained a CPU second by reeltag and by the authors' graphs under TensorFlow 2, on one core.

Whole steps with forward, backward, clipping and Adam, on batches of 300 frames of 1152 values and 3862 classes.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import Peer, print_table, rates, run_rounds, timed
from models import (
    MODELS,
    TITLES,
    Trainer,
    build,
    frames_of,
    hand_over,
    random_batch,
    refuse_difference,
    run,
    scaled_to,
)

# The peer keeps the memory that it frees too, so that neither side's time goes into new pages.
os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 40))
BATCH, RECURRENT_BATCH = 80, 32
PRECISIONS = {"reeltag, float32": "32-true", "reeltag, bf16": "bf16-mixed"}


def measure(name: str, peers: Path, rounds: int) -> dict[str, Any]:
    """Time one model."""
    size = RECURRENT_BATCH if MODELS[name]["family"] == "rnn" else BATCH
    frames, videos = frames_of(name), scaled_to(name, size)
    rows = {}
    with tempfile.TemporaryDirectory() as folder, Peer.find(peers, "peer_tf_models.py") as peer:
        if peer:
            refuse_difference(name, peer, Path(folder))
            weights = hand_over(build(name), Path(folder) / "w.npz")
            rows[peer.name] = partial(peer.timed, videos, "train", name, weights, size, frames)
        tagger, batch = build(name), random_batch(torch.full((size,), frames))
        # One optimizer for both precisions, because Adam's moments are two thirds of the memory.
        optimizer = Trainer(tagger, "32-true").replica.optimizer
        for title, precision in PRECISIONS.items():
            rows[title] = partial(timed, partial(Trainer(tagger, precision, optimizer).step, batch), videos)
        found = rates(run_rounds(rows, rounds), peer and peer.name)
    print(f"{TITLES[name]}, batches of {size}, {frames} frames, {rounds} rounds on one core, videos of 300 frames\n")
    print_table(found, peer and peer.name)
    return found


if __name__ == "__main__":
    run(
        "train", "Videos trained a CPU second, by reeltag and by the authors' graphs under TensorFlow.", MODELS, measure
    )
