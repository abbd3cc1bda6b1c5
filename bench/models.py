"""The models that bench/train.py and bench/infer.py time, with published sizes, and how they face TensorFlow's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measure import ENOUGH, Peer, options, pin, print_json
from reeltag.core.environment import keep_freed_memory
from reeltag.data.loader import Batch, sample_frames
from reeltag.data.schema import preset_schema
from reeltag.models.families import parse_config
from reeltag.models.tagger import Tagger, build_tagger
from reeltag.training.replica import Replica
from reeltag.training.schedule import TrainingSettings

SCHEMA = preset_schema("yt8m-frame")
keep_freed_memory()
MODELS: dict[str, dict[str, Any]] = {
    "netvlad": {"family": "netvlad", "clusters": 256, "hidden": 1024, "head": {"prob_gating": True}},
    "netvlad1": {"family": "netvlad", "clusters": 192, "hidden": 992, "head": {"prob_gating": True}},
    "netfv": {"family": "netfv", "clusters": 96, "hidden": 1540, "head": {"prob_gating": True}},
    "dbof": {"family": "dbof", "clusters": 4096, "hidden": 1024},
    "lstm": {"family": "rnn", "cell": "lstm", "cells": 1024, "head": {"kind": "logistic", "l2": 1e-8}},
    "gru": {"family": "rnn", "cell": "gru", "cells": 1024, "head": {"kind": "logistic", "l2": 1e-8}},
}
TITLES = {
    "netvlad": "NetVLAD 256/1024",
    "netvlad1": "NetVLAD1 192/992",
    "netfv": "NetFV 96/1540",
    "dbof": "gated DBoF 4096/1024",
    "lstm": "bi-LSTM 1024",
    "gru": "bi-GRU 1024",
}
# Recurrent models take time in proportion to the frames, so theirs are fewer and what they take is scaled to 300.
RECURRENT_FRAMES = 100
SMALL = {"clusters": 16, "hidden": 24, "cells": 32}
SEED = 7


def build(name: str, small: bool = False) -> Tagger:
    """A model with random weights; a small one is for comparing."""
    table = MODELS[name]
    if small:
        table = table | {key: value for key, value in SMALL.items() if key in table}
    return build_tagger(parse_config(table, SCHEMA.widths), SCHEMA.widths, SCHEMA.classes, SEED)


def graph_of(name: str) -> str:
    """The peer's name of a model's graph; sizes are those of the weights."""
    return name.rstrip("1")


def frames_of(name: str) -> int:
    """Frames of the videos that a model is timed with."""
    return RECURRENT_FRAMES if MODELS[name]["family"] == "rnn" else SCHEMA.max_frames


def scaled_to(name: str, size: int) -> float:
    """Return the number of videos of 300 frames to which a batch is equivalent."""
    return size * frames_of(name) / SCHEMA.max_frames


def random_batch(lengths: Tensor) -> Batch:
    """Videos of random frames."""
    rng, size = torch.Generator().manual_seed(SEED), len(lengths)
    shape = (size, SCHEMA.max_frames, SCHEMA.width)
    frames = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    labels = torch.rand(size, SCHEMA.classes, generator=rng) < 3 / SCHEMA.classes
    return Batch(("",) * size, frames[:, : int(lengths.max())], lengths, labels)


def run(
    bench: str,
    description: str,
    default: Sequence[str],
    measure: Callable[..., dict[str, Any]],
    finish: Callable[[dict[str, Any]], None] = lambda results: None,
) -> None:
    """Time the models that the command line names, each in a call of its own, which frees its gigabytes."""
    parser = options(description)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(default))
    given = parser.parse_args()
    pin()
    torch.set_num_threads(1)
    results = {name: measure(name, given.peers, given.rounds) for name in given.models}
    print_json(given.json, bench, rounds=given.rounds, models=results)
    if given.rounds >= ENOUGH:
        finish(results)


class Trainer:
    """A model that takes training steps."""

    def __init__(self, tagger: Tagger, precision: str, optimizer: torch.optim.Adam | None = None) -> None:
        self.replica = Replica(tagger, TrainingSettings(precision=precision, device="cpu"))
        self.replica.optimizer = optimizer or self.replica.optimizer
        self.steps = 0

    def step(self, batch: Batch) -> float:
        """The loss before the step."""
        self.replica.set_learning_rate(TrainingSettings().learning_rate, self.steps)
        self.steps += 1
        return self.replica.train_step(batch, SEED)


def hand_over(tagger: Tagger, path: Path, given: Mapping[str, Tensor] | None = None) -> Path:
    """Weights, and what else is given, in the file that the peer reads."""
    arrays = {f"model.{name}": tensor for name, tensor in tagger.state_dict().items() if tensor.is_floating_point()}
    arrays |= {f"given.{name}": tensor for name, tensor in (given or {}).items()}
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})
    return path


def refuse_difference(name: str, peer: Peer, folder: Path) -> None:
    """Stop unless the peer's graph has our probabilities, and our losses over three steps of training."""
    batch = random_batch(torch.tensor([300, 120, 7, 1]))
    ordered = MODELS[name]["family"] == "rnn"
    draws = sample_frames(batch.lengths, SCHEMA.max_frames, torch.manual_seed(SEED))
    tagger = build(name, small=True)
    mask = torch.arange(SCHEMA.max_frames) < batch.lengths[:, None]
    given = {
        "frames": torch.where(mask[..., None], batch.frames * (4 / 255) + (4 / 512 - 2), 0.0),
        "draws": draws.int(),
        "lengths": batch.lengths.int(),
        "labels": batch.labels.float(),
    }
    theirs = peer.ask("check", graph_of(name), hand_over(tagger, folder / f"{name}.small.npz", given))
    drawn = batch.frames if ordered else batch.frames.gather(1, draws[..., None].expand(-1, -1, SCHEMA.width))
    lengths = batch.lengths if ordered else torch.full((4,), SCHEMA.max_frames)
    with torch.inference_mode():
        ours = tagger.eval()(drawn, lengths)
    trainer = Trainer(tagger, "32-true")
    losses = [trainer.step(batch) for _ in range(3)]
    worst = float((ours - torch.tensor(theirs["probabilities"])).abs().max())
    if worst > 1e-5 or not np.allclose(losses, theirs["losses"], rtol=2e-5):
        raise SystemExit(f"{name}: probabilities differ by {worst}, losses are {losses} and {theirs['losses']}")
