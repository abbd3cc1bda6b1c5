"""Videos tagged a CPU second by reeltag and by the authors' graphs under TensorFlow 2, on one core.

Videos of 300 frames, and ours also of 120 to 300, 210 on average, which the authors' program pads to 300.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from measure import Peer, print_table, rates, run_rounds, timed
from models import SCHEMA, TITLES, build, frames_of, hand_over, random_batch, refuse_difference, run, scaled_to
from reeltag.artifact.file import Artifact, Member
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.predictor import Mode, Predictor

MODELS = ("netvlad", "dbof", "lstm")
SHORTEST = 0.4  # of the longest, so that the mean is 0.7


def measure(name: str, peers: Path, rounds: int) -> dict[str, Any]:
    """Time one model."""
    frames, videos = frames_of(name), scaled_to(name, BATCH_SIZE)
    full, real = (random_batch(torch.linspace(share * frames, frames, BATCH_SIZE).long()) for share in (1, SHORTEST))
    rows = {}
    with tempfile.TemporaryDirectory() as folder, Peer.find(peers, "peer_tf_models.py") as peer:
        if peer:
            refuse_difference(name, peer, Path(folder))
            weights = hand_over(build(name), Path(folder) / "w.npz")
            rows[peer.name] = partial(peer.timed, videos, "infer", name, weights, BATCH_SIZE, frames)
        for precision in ("float32", "bf16"):
            model = opened(name, "bf16" if precision == "bf16" else "exact")
            for title, batch in ((precision, full), (f"{precision}, real lengths", real)):
                rows[f"reeltag, {title}"] = partial(timed, partial(tag, model, batch), videos)
        found = rates(run_rounds(rows, rounds), peer and peer.name)
    size = f"batches of {BATCH_SIZE}, {frames} frames, {rounds} rounds on one core"
    print(f"{TITLES[name]}, {size}, videos of up to 300 frames\n")
    print_table(found, peer and peer.name)
    return found


def opened(name: str, mode: Mode) -> nn.Module:
    """A model as a user has it."""
    tagger = build(name)
    artifact = Artifact(SCHEMA, None, (Member(name, tagger.config, 1.0, tagger.state_dict()),), {})
    return Predictor(artifact, artifact.members, mode, "cpu").model


def tag(model, batch) -> None:
    for _ in predict_batches(model, [batch]):
        pass


if __name__ == "__main__":
    run("infer", "Videos tagged a CPU second, by reeltag and by the authors' graphs under TensorFlow.", MODELS, measure)
