"""The log of a training says what was trained, and is the same however often the training was broken off."""

import csv

import numpy as np
import pytest

from reeltag.core import tensorfile
from reeltag.data.shards import Shards
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.training import checkpoint
from reeltag.training.log import LOG, TrainingLog, steps_a_row
from reeltag.training.replica import Replica
from reeltag.training.schedule import AveragingSettings, TrainingSettings, averaging_phase, training_phase
from reeltag.training.trainer import Trainer, TrainingData
from runs import KillAfter, KilledError

SETTINGS = TrainingSettings(batch_size=10, epochs=2.5, frames=8, learning_rate=1e-3, schedule="cosine", device="cpu")
CONFIG = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "dropout": 0.3, "bn_decay": 0.9})


@pytest.fixture(scope="module")
def shards(tiny_manifests):
    return Shards(tiny_manifests["train"])


@pytest.fixture
def few_rows(monkeypatch):
    """Rows of three steps."""
    monkeypatch.setattr("reeltag.training.early_stopping.steps_a_row", lambda steps: 3)


def train(shards, folder, *, phase=None, start=None, progress=None, seconds=1e9):
    folder.mkdir(exist_ok=True)
    schema = shards.manifest.schema
    tagger, indices = build_tagger(CONFIG, schema.widths, schema.classes, 3), np.arange(len(shards))
    data, phase = TrainingData(shards, indices), phase or training_phase(SETTINGS, len(indices))
    trainer = Trainer(tagger, data, SETTINGS, seed=3, progress=progress, checkpoint_seconds=seconds)
    return trainer.fit(phase, folder / "checkpoint", start=start)


def rows(folder):
    with (folder / LOG).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("steps", "most"), [(1, 1), (400, 400), (401, 201), (799, 400), (10**6, 400)])
def test_a_training_has_hundreds_of_rows(steps, most):
    log = TrainingLog()
    for step in range(1, min(steps, 10**4) + 1):
        log.add(step, 0.0, 1.0, 1.0, every=steps_a_row(steps), gap=None, ends=step == steps)
    if steps <= 10**4:
        assert len(log.rows) == most
    assert -(-steps // steps_a_row(steps)) == most


def test_rows_hold_the_mean_loss_of_their_steps(shards, tmp_path, monkeypatch, few_rows):
    losses, step = [], Replica.train_step
    monkeypatch.setattr(Replica, "train_step", lambda *all: losses.append(step(*all)) or losses[-1])
    train(shards, tmp_path)
    phase, found = training_phase(SETTINGS, len(shards)), rows(tmp_path)
    ends = [*range(3, len(losses), 3), len(losses)]
    assert len(losses) == len(phase.steps)
    assert [int(row["step"]) for row in found] == ends
    for begin, end, row in zip([0, *ends], ends, found, strict=False):
        assert float(row["loss"]) == pytest.approx(np.mean(losses[begin:end]), rel=1e-6)
        assert float(row["learning_rate"]) == pytest.approx(phase.learning_rate(end - 1), rel=1e-6)
        assert float(row["epoch"]) == pytest.approx(end * 10 / len(shards), rel=1e-6)
        assert row["holdout_gap"] == ""


def test_a_training_stopped_after_any_step_has_the_same_log(shards, tmp_path, few_rows):
    train(shards, tmp_path / "whole")
    for stop in range(len(training_phase(SETTINGS, len(shards)).steps)):
        with pytest.raises(KilledError):
            train(shards, tmp_path / f"{stop}", progress=KillAfter(stop), seconds=0)
        train(shards, tmp_path / f"{stop}")
        assert (tmp_path / f"{stop}" / LOG).read_bytes() == (tmp_path / "whole" / LOG).read_bytes()


def test_a_kill_between_the_checkpoint_and_its_log_leaves_no_gap(shards, tmp_path, few_rows):
    train(shards, tmp_path)
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).unlink()  # the last checkpoint was written, and its log was not
    train(shards, tmp_path)
    assert (tmp_path / LOG).read_bytes() == whole


def test_averaging_has_a_log_of_its_own_that_goes_on_counting(shards, tmp_path, few_rows):
    start = train(shards, tmp_path / "train")
    phase = averaging_phase(SETTINGS, AveragingSettings(epochs=1, time_constant=5), len(shards))
    train(shards, tmp_path / "average", phase=phase, start=start)
    steps = [int(row["step"]) for row in rows(tmp_path / "average")]
    assert steps[0] == phase.steps.start + 3
    assert steps[-1] == phase.steps.stop
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "average")] == pytest.approx([1e-3 / 5] * len(steps))


def test_a_checkpoint_from_before_there_were_logs_goes_on(shards, tmp_path):
    state = train(shards, tmp_path)
    tensorfile.save_tensors(tmp_path / "checkpoint", {f"model/{k}": v for k, v in state.model.items()}, {"step": 1})
    assert checkpoint.load(tmp_path / "checkpoint").log == {}
