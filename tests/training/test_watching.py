"""A training that is watched on the hold-out: what it measures, where it ends, what it leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import TINY_RUN
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError
from reeltag.core.progress import PlainProgress
from reeltag.data.shards import Manifest, Shards
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.predictor import load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.pipeline.plan import plan
from reeltag.pipeline.stages.files import split
from reeltag.recipe.load import load_recipe
from reeltag.training.early_stopping import HoldoutEvaluation as Evaluation
from reeltag.training.log import LOG, read_rows
from reeltag.training.schedule import (
    AveragingSettings,
    TrainingSettings,
    averaging_phase,
    evaluation_steps,
    training_phase,
)
from reeltag.training.trainer import Trainer, TrainingData
from runs import KillAfter, KilledError

SETTINGS = TrainingSettings(batch_size=8, epochs=6, frames=8, learning_rate=1e-2, schedule="cosine", device="cpu")
CONFIG = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "dropout": 0.3, "bn_decay": 0.9})
AVERAGING = AveragingSettings(epochs=4, time_constant=5)
RECIPE = f'name = "tiny"\nbudget_mb = 0.3\n{TINY_RUN}[models.a]\nfamily = "netvlad"\nclusters = 4\nhidden = 16\n'


@pytest.fixture(scope="module")
def shards(tiny_manifests):
    return Shards(tiny_manifests["train"])


def phase_of(shards):
    return training_phase(SETTINGS, len(shards))


def train(shards, folder, *, phase=None, start=None, evaluation=None, progress=None, seconds=1e9):
    folder.mkdir(exist_ok=True)
    schema = shards.manifest.schema
    tagger, indices = build_tagger(CONFIG, schema.widths, schema.classes, 3), np.arange(len(shards))
    trainer = Trainer(
        tagger, TrainingData(shards, indices), SETTINGS,
        seed=3, evaluation=evaluation, progress=progress, checkpoint_seconds=seconds,
    )  # fmt: skip
    return trainer.fit(phase or phase_of(shards), folder / "checkpoint", start=start)


class Told:
    """Measures what it is told to, and keeps the weights that it was asked for."""

    def __init__(self, *gaps):
        self.gaps, self.seen = list(gaps), []

    def __call__(self, weights):
        self.seen.append({name: tensor.clone() for name, tensor in weights.items()})
        return self.gaps[len(self.seen) - 1]


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_watching_measures_the_weights_on_their_way_and_changes_none(shards, tmp_path):
    told = Told(*np.linspace(0.1, 0.9, 6))
    watched = train(shards, tmp_path / "watched", evaluation=Evaluation(told, every=3))
    same(watched.model, train(shards, tmp_path / "alone").model)
    rows = {row.step: row.holdout_gap for row in read_rows(tmp_path / "watched" / LOG)}
    assert [step for step, gap in rows.items() if gap is not None] == [3, 6, 9, 12, 15, 18]
    assert [gap for gap in rows.values() if gap is not None] == pytest.approx(told.gaps)
    for steps, seen in zip((3, 15), (told.seen[0], told.seen[4]), strict=True):
        cut = replace(phase_of(shards), steps=range(steps))
        same(seen, train(shards, tmp_path / f"{steps}", phase=cut).model)


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ([0.1, 0.3, 0.2, 0.25], 1),  # two without a new best
        ([0.3, 0.3, 0.3], 0),  # an equal one is none
        ([0.3, 0.2, 0.4, 0.1, 0.2], 2),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.4], 4),  # the end comes first
    ],
)
def test_patience_ends_a_phase_with_its_best_weights(shards, tmp_path, measured, best):
    told = Told(*measured)
    state = train(shards, tmp_path, evaluation=Evaluation(told, every=3, patience=2))
    assert len(told.seen) == len(measured)
    same(state.model, told.seen[best])
    assert state.step == phase_of(shards).steps.stop
    assert not state.best
    assert read_rows(tmp_path / LOG)[-1].step == 3 * len(measured)
    again = train(
        shards, tmp_path, evaluation=Evaluation(Told(), every=3, patience=2)
    )  # it is done, and measures nothing
    same(again.model, state.model)


def test_people_are_told_why_a_phase_ended(shards, tmp_path, capsys):
    train(
        shards,
        tmp_path,
        evaluation=Evaluation(Told(0.3, 0.2, 0.1), every=3, patience=2),
        progress=PlainProgress(),
    )
    said = capsys.readouterr().err
    assert "hold-out GAP 0.10000, the best was 2 evaluations ago, so training ends" in said


def test_averaging_that_is_watched_leaves_its_best_average(shards, tmp_path):
    start = train(shards, tmp_path / "train", evaluation=Evaluation(Told(0.3, 0.2, 0.1), every=3, patience=2))
    phase = averaging_phase(SETTINGS, AVERAGING, len(shards))
    told = Told(0.1, 0.4, 0.3, 0.2)
    state = train(
        shards, tmp_path / "average", phase=phase, start=start, evaluation=Evaluation(told, every=2, patience=2)
    )
    same(state.average, told.seen[1])
    assert state.step == phase.steps.stop
    assert [row.step for row in read_rows(tmp_path / "average" / LOG)][-1] == phase.steps.start + 8


def unsteady(weights):
    """Goes up and down as a training goes on."""
    return float(weights["hidden.weight"].double().mul(1e4).sin().sum())


@pytest.mark.parametrize("patience", [None, 1, 2, 4])
def test_a_watched_training_stopped_after_any_step_ends_with_the_same_bytes(shards, tmp_path, patience):
    watch = Evaluation(unsteady, every=2, patience=patience)
    train(shards, tmp_path / "whole", evaluation=watch)
    for stop in range(0, len(read_rows(tmp_path / "whole" / LOG)), 2 if patience else 5):
        with pytest.raises(KilledError):
            train(shards, tmp_path / f"{stop}", evaluation=watch, progress=KillAfter(stop), seconds=0)
        train(shards, tmp_path / f"{stop}", evaluation=watch, seconds=0)
        for name in ("checkpoint", LOG):
            assert (tmp_path / f"{stop}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), stop


def test_epochs_between_measurements_become_steps():
    for watch, steps in ((None, None), (1.0, 10), (0.25, 2), (1e-6, 1), (3.0, 30)):
        assert evaluation_steps(TrainingSettings(batch_size=10, evaluate_every=watch), 100) == steps


# --- in a recipe ----------------------------------------------------------------------------------


def recipe(folder, *overrides):
    (folder / "tiny.toml").write_text(RECIPE)
    return load_recipe(folder / "tiny.toml", overrides)


def gaps(log):
    return [row.holdout_gap for row in read_rows(log) if row.holdout_gap is not None]


def test_the_gap_of_the_log_is_that_of_the_models_file_on_the_held_out_shard(tmp_path):
    keys = ["data.holdout={ shards = 1 }", "training.epochs=5", "training.evaluate_every=2", "training.patience=2"]
    loaded, out = recipe(tmp_path, *keys), tmp_path / "out"
    sets = [part for key in keys for part in ("--set", key)]
    assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(out), *sets]) == 0
    manifest = Manifest.load(next(out.glob("stages/data.train-*/manifest.safetensors")))
    (shard,) = set(Shards(manifest).numbers(split(loaded, manifest)[1]).tolist())
    (stage,), (average,) = out.glob("stages/train.a-*"), out.glob("stages/average.a-*")
    predictions = load(stage / "model.reeltag").predict_shards([manifest.shards[shard].path])
    assert len(gaps(stage / LOG)) == 3  # after two epochs, four, and at the end
    assert max(gaps(stage / LOG)) == pytest.approx(evaluate_predictions(predictions).gap(), abs=1e-6)
    scores = json.loads((average / "scores.json").read_text())
    assert max(gaps(stage / LOG)) == pytest.approx(scores["plain"], abs=1e-6)
    assert max(gaps(average / LOG)) == pytest.approx(scores["averaged"], abs=1e-6)


def test_watching_is_decisive_and_its_absence_changes_no_hash(tmp_path):
    plain, watched = recipe(tmp_path), recipe(tmp_path, "training.evaluate_every=1", "training.patience=3")
    assert plain.fingerprint != watched.fingerprint
    assert "evaluate_every" not in json.dumps(plain.dump())
    stages = {stage.name: stage for stage in plan(plain)}
    assert not {"evaluate_every", "patience"} & stages["train.a"].parameters["training"].keys()
    assert {stage.name: stage for stage in plan(watched)}["train.a"].checkpoint_bytes > stages[
        "train.a"
    ].checkpoint_bytes


def test_patience_without_a_watch_is_a_fault_wherever_it_stands(tmp_path):
    for keys in (["training.patience=3"], ["models.a.training.patience=3"]):
        with pytest.raises(RecipeError, match="patience = 3 counts evaluations on the hold-out; give evaluate_every"):
            recipe(tmp_path, *keys)
    assert recipe(tmp_path, "training.evaluate_every=0.5", "models.a.training.patience=3")


@pytest.mark.slow
def test_processes_that_share_a_watched_training_end_it_together(tmp_path):
    recipe(tmp_path)
    logs = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}"
        keys = [
            "training.evaluate_every=0.5",
            "training.patience=1",
            f"training.devices={devices}",
            "training.epochs=30",
        ]
        sets = [part for key in keys for part in ("--set", key)]
        assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(out), *sets]) == 0
        logs.append(read_rows(out / "logs" / "train.a.csv"))
    one, two = ([row.step for row in log] for log in logs)
    assert one == two
    assert one[-1] < 30 * 270 / 32  # it ended early
    np.testing.assert_allclose([row.loss for row in logs[0]], [row.loss for row in logs[1]], rtol=1e-3)
