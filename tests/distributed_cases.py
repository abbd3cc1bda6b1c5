"""Trainings that two processes do as one does: what `test_distributed` compares, and does in a pair of processes."""

import numpy as np

import reeltag.train
from reeltag import distributed
from reeltag.data.shards import Shards
from reeltag.models.tagger import build_tagger, parse_config
from reeltag.progress import Progress
from reeltag.schedule import AveragingSettings, TrainingSettings, averaging_phase, training_phase
from reeltag.train import run_phase

SETTINGS = {"batch_size": 8, "epochs": 2, "frames": 6, "rate": 3e-3, "device": "cpu", "precision": "32-true"}
SMALL = {"hidden": 8, "bn_decay": 0.9, "dropout": 0.5, "head": {"l2": 1e-3}}
# Each family with all that is drawn or normalised somewhere; what differs from SMALL and SETTINGS.
CASES = {
    "netvlad": ({"family": "netvlad", "clusters": 4}, {}),
    "netvlad, all frames": ({"family": "netvlad", "clusters": 4}, {"frames": "all"}),
    "netvlad, mixup": ({"family": "netvlad", "clusters": 4}, {"mixup": 0.4}),
    "netvlad, mixup of all frames": ({"family": "netvlad", "clusters": 4}, {"frames": "all", "mixup": 0.4}),
    "netvlad, clipped as one": ({"family": "netvlad", "clusters": 4}, {"clip": "global", "clip_norm": 0.1}),
    "netfv": ({"family": "netfv", "clusters": 4, "activation": "relu6", "head": {"prob_gating": True}}, {}),
    "dbof, gated": ({"family": "dbof", "clusters": 16}, {}),
    "dbof, maximum": ({"family": "dbof", "pooling": "max", "clusters": 16}, {"frames": "all"}),
    "nextvlad": ({"family": "nextvlad", "clusters": 4, "groups": 2, "gating": {"kind": "se", "reduction": 2}}, {}),
    "nextvlad, all frames": ({"family": "nextvlad", "clusters": 4, "groups": 2}, {"frames": "all"}),
    "attention": ({"family": "attention", "width": 8, "heads": 2}, {}),
    "mean": ({"family": "mean", "hidden": 0}, {}),
    "mean, normed": ({"family": "mean", "input_norm": True, "activation": "norm"}, {}),
    "rnn": ({"family": "rnn", "cells": 8}, {}),
    "rnn, shuffled, two paths": (
        {"family": "rnn", "cell": "gru", "cells": 16, "paths": "dual", "shuffle": True, "input_norm": True}, {}
    ),
}  # fmt: skip


class Recorded:
    """A training of which each step's loss and videos are noted."""

    def __init__(self, manifest, path, table, settings, *, epochs=None, averaging=False, start=None):
        shards = Shards(manifest)
        self.shards, self.indices, self.path, self.start = shards, np.arange(len(shards)), path, start
        schema = manifest.schema
        self.tagger = build_tagger(parse_config({**SMALL, **table}, schema.widths), schema.widths, schema.classes, 5)
        self.settings = TrainingSettings(**{**SETTINGS, **settings})
        self.phase = training_phase(self.settings, len(shards))
        if averaging:
            self.phase = averaging_phase(self.settings, AveragingSettings(epochs=1, time_constant=3), len(shards))
        self.losses, self.ids = [], []

    def run(self, *, until=None, progress=None):
        """The state at the end, or after `until` steps of the phase."""
        step = reeltag.train.train_step

        def noted(fabric, model, optimizer, batch, *rest):
            self.ids.append(batch.ids)
            self.losses.append(step(fabric, model, optimizer, batch, *rest))
            return self.losses[-1]

        phase = self.phase
        if until is not None:
            phase = reeltag.train.Phase(phase.steps[:until], phase.rate, phase.time_constant)
        reeltag.train.train_step = noted
        try:
            return run_phase(
                self.tagger, self.shards, self.indices, phase, self.settings, seed=5, path=self.path,
                start=self.start, progress=progress or Progress(),
            )  # fmt: skip
        finally:
            reeltag.train.train_step = step


def every_case(manifest, folder):
    """By case: losses, state, the videos that each process read at each step, and the state of each process."""
    found = {}
    for name, (table, settings) in CASES.items():
        training = Recorded(manifest, folder / name, table, settings)
        state = training.run()
        weights = {part: getattr(state, part) for part in ("model", "optimizer")}
        found[name] = (training.losses, weights, distributed.gathered(training.ids), distributed.gathered(weights))
    return found
