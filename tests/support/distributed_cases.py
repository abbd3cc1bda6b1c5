"""Trainings that two processes do as one does: what `test_distributed` compares, and does in a pair of processes."""

import math
import os
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

import reeltag.training.replica
import reeltag.training.trainer
from conftest import TINY
from reeltag.core.distributed import process_group
from reeltag.core.errors import DataError, ReeltagError, TrainingError
from reeltag.core.interrupts import Terminated, raise_on_sigterm
from reeltag.core.progress import Progress, Task
from reeltag.data.shards import Shards, scan
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.training.checkpoint import TrainingState
from reeltag.training.replica import Replica
from reeltag.training.schedule import AveragingSettings, Phase, TrainingSettings, averaging_phase, training_phase
from reeltag.training.trainer import Trainer, TrainingData

SETTINGS = {"batch_size": 8, "epochs": 2, "frames": 6, "learning_rate": 3e-3, "device": "cpu", "precision": "32-true"}
SMALL = {"hidden": 8, "bn_decay": 0.9, "dropout": 0.5, "head": {"l2": 1e-3}}
# Each family with all that is drawn or normalised somewhere; what differs from SMALL and SETTINGS.
# A shift before another batch norm changes nothing: its gradient is rounding errors, which Adam scales up to whole
# steps. So no input norm where one follows at once, but for the paths of an RNN, whose layers are so.
CASES = {
    "netvlad": ({"family": "netvlad", "clusters": 4}, {}),
    "netvlad, all frames": ({"family": "netvlad", "clusters": 4}, {"frames": "all"}),
    "netvlad, mixup": ({"family": "netvlad", "clusters": 4}, {"mixup": 0.4}),
    "netvlad, mixup of all frames": ({"family": "netvlad", "clusters": 4}, {"frames": "all", "mixup": 0.4}),
    "netvlad, clipped as one": ({"family": "netvlad", "clusters": 4}, {"clip": "global", "clip_norm": 0.1}),
    "netfv": ({"family": "netfv", "clusters": 4, "activation": "relu6", "head": {"prob_gating": True}}, {}),
    "dbof, gated": ({"family": "dbof", "clusters": 16, "input_norm": False}, {}),
    "dbof, maximum": ({"family": "dbof", "pooling": "max", "clusters": 16, "input_norm": False}, {"frames": "all"}),
    "nextvlad": ({"family": "nextvlad", "clusters": 4, "groups": 2, "activation": "bias"}, {}),
    "nextvlad, all frames": (
        {"family": "nextvlad", "clusters": 4, "groups": 2, "activation": "bias",
         "gating": {"kind": "se", "reduction": 2}}, {"frames": "all"},
    ),
    "attention": ({"family": "attention", "width": 8, "heads": 2}, {}),
    "mean": ({"family": "mean", "hidden": 0, "input_norm": True}, {}),
    "mean, normed": ({"family": "mean", "activation": "norm"}, {"frames": "all"}),
    "rnn": ({"family": "rnn", "cells": 8, "input_norm": True}, {}),
    "rnn, shuffled": ({"family": "rnn", "cell": "gru", "cells": 8, "shuffle": True}, {}),
    "rnn, two paths": ({"family": "rnn", "cell": "gru-torch", "cells": 16, "paths": "dual"}, {}),
}  # fmt: skip
FOLLOWED_BY_A_NORM = {"rnn, two paths": r"pooling\.before\.\d\.(input_norm\.norm\.bias|.*running_mean)"}


class Recorded:
    """A training of which each step's loss and videos are noted."""

    def __init__(self, manifest, path, table, settings, *, averaging=False):
        shards = Shards(manifest)
        self.shards, self.indices, self.path = shards, np.arange(len(shards)), path
        schema = manifest.schema
        self.tagger = build_tagger(parse_config({**SMALL, **table}, schema.widths), schema.widths, schema.classes, 5)
        self.settings = TrainingSettings(**{**SETTINGS, **settings})
        self.phase = training_phase(self.settings, len(shards))
        self.start = None
        if averaging:
            moments = {
                f"{name}/{key}": torch.zeros_like(weight)
                for name, weight in self.tagger.named_parameters()
                for key in ("exp_avg", "exp_avg_sq")
            }
            weights = {name: tensor.clone() for name, tensor in self.tagger.state_dict().items()}
            self.start = TrainingState(self.phase.steps.stop, weights, moments, {})
            self.phase = averaging_phase(self.settings, AveragingSettings(epochs=1, time_constant=3), len(shards))
        self.losses, self.ids = [], []

    def run(self, *, until=None, progress=None, seconds=1e9):
        """The state at the end, or after `until` steps of the phase."""
        step = Replica.train_step

        def noted(replica, batch, *rest):
            self.ids.append(batch.ids)
            self.losses.append(step(replica, batch, *rest))
            return self.losses[-1]

        phase = self.phase
        if until is not None:
            phase = Phase(phase.steps[:until], phase.learning_rate, phase.time_constant)
        Replica.train_step = noted
        try:
            data = TrainingData(self.shards, self.indices)
            trainer = Trainer(self.tagger, data, self.settings, seed=5, progress=progress, checkpoint_seconds=seconds)
            return trainer.fit(phase, self.path, start=self.start)
        finally:
            Replica.train_step = step


def every_case(manifest, folder):
    """By case: losses, state, the videos that each process read at each step, and the state of each process."""
    found = {}
    for name, (table, settings) in CASES.items():
        training = Recorded(manifest, folder / name, table, settings)
        state = training.run()
        weights = {part: getattr(state, part) for part in ("model", "optimizer")}
        found[name] = (
            training.losses,
            weights,
            process_group.all_gather(training.ids),
            process_group.all_gather(weights),
        )
    return found


def one_case(manifest, path, name="netvlad"):
    """Losses and weights of a case."""
    training = Recorded(manifest, path, *CASES[name])
    return training.run().model, training.losses


def in_a_pair(manifest, folder):
    """All that the pair does: what came of it, by what it was."""
    return {
        "who": process_group.all_gather(
            (
                process_group.rank(),
                process_group.world_size(),
                torch.get_num_threads(),
                process_group.broadcast(os.getpid()),
            )
        ),
        "agreed": process_group.all_gather(
            process_group.all_reduce_max(3 - process_group.rank(), 5 * process_group.rank())
        ),
        "cases": every_case(manifest, folder),
        "middle": [resumed(manifest, folder, averaging, until=4) for averaging in (False, True)],
        "not finite": not_finite(manifest, folder / "not finite"),
        "refused": process_group.all_gather(refused(manifest, folder / "refused")),
    }


def resumed(manifest, folder, averaging, until=None):
    """Go on with a training, or an averaging, that may be begun; up to a step, or to its end."""
    settings = {"batch_size": 4, "epochs": 1}
    path = folder / f"resumed, {averaging}"
    return Recorded(manifest, path, CASES["netvlad"][0], settings, averaging=averaging).run(until=until)


def not_finite(manifest, path):
    """Return the error of each process when the loss of one is not a number at the third step."""
    loss, calls = reeltag.training.replica.cross_entropy, []

    def third_is_none(*arguments):
        calls.append(None)
        spoilt = process_group.rank() == process_group.world_size() - 1 and len(calls) == 3
        return loss(*arguments) * (math.nan if spoilt else 1)

    reeltag.training.replica.cross_entropy, reeltag.training.trainer.CHECKPOINT_SHARE = third_is_none, math.inf
    training = Recorded(manifest, path, *CASES["netvlad"])
    try:
        training.run(seconds=0)
    except TrainingError as error:
        return process_group.all_gather((str(error), len(calls)))
    finally:
        reeltag.training.replica.cross_entropy = loss
    return None


def refused(manifest, path):
    """Return the message about a batch that two processes cannot divide."""
    try:
        Recorded(manifest, path, CASES["netvlad"][0], {"batch_size": 9}).run()
    except TrainingError as error:
        return str(error)
    return None


def fails_in_one():
    """A bad record in one process, while the other waits for it."""
    if process_group.rank() == 1:
        raise DataError("is damaged", file="a.tfrecord", record=7, offset=99)
    process_group.all_reduce_max(1)


class Told(Progress):
    """Prints each process's number, and when some steps are done."""

    @contextmanager
    def task(self, name, total, unit):
        yield _ToldTask(name, total, unit)


class _ToldTask(Task):
    def advance(self, amount, **facts):
        super().advance(amount, **facts)
        if self.done == 5 * amount:
            print("trains", flush=True)


def lasting(manifest, path):
    """A training that does not end by itself."""
    print("rank", process_group.rank(), os.getpid(), flush=True)
    Recorded(manifest, path, CASES["netvlad"][0], {"epochs": 1e5, "workers": 1}).run(progress=Told())


def disturbed(folder):
    """The program of a test that ends it: a lasting training in two processes."""
    folder = Path(folder)
    manifest = scan(sorted(folder.glob("train-*")), TINY.record_schema)
    try:
        with raise_on_sigterm():
            process_group.launch(partial(lasting, manifest, folder / "state"), 2)
    except KeyboardInterrupt as error:
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except ReeltagError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def trained(folder):
    """The program under torchrun, where each process of the training is one of its own."""
    folder = Path(folder)
    manifest = scan(sorted(folder.glob("train-*")), TINY.record_schema)
    Recorded(manifest, folder / "torchrun", *CASES["netvlad"]).run()


if __name__ == "__main__":
    {"disturbed": disturbed, "trained": trained}[sys.argv[1]](sys.argv[2])
