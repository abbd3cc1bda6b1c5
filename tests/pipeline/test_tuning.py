"""A search of sizes and rates: what it tries, what it gives up, how it goes on, and what it never looks at."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import REPO, TINY
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError, TrainingStoppedError, UsageError
from reeltag.data.shards import Shards
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.pipeline.tuning.study import GivenUp, Outcome, Study
from reeltag.pipeline.tuning.tune import tune
from reeltag.recipe.load import load_recipe, parse_recipe, recipe_table
from reeltag.recipe.schema import RangeSettings
from reeltag.recipe.search_space import Dimension, search_space
from reeltag.training.early_stopping import HoldoutEvaluation
from reeltag.training.schedule import TrainingSettings, training_phase
from reeltag.training.trainer import Trainer, TrainingData
from runs import COMMAND, KilledError

optuna = pytest.importorskip("optuna")

RECIPE = f"""# of a test
name = "tuned"
seed = 5
budget_mb = 1
[data]
train = ["train-*.tfrecord"]
test = ["test-*.tfrecord"]
holdout = {{ fraction = 0.3 }}
[data.schema]
features = [{{ name = "rgb", width = {TINY.rgb} }}, {{ name = "audio", width = {TINY.audio} }}]
classes = {TINY.classes}
max_frames = {TINY.frames[1]}
[training]
epochs = 2
batch_size = 8
frames = 4
learning_rate = 5e-3
device = "cpu"
evaluate_every = 1
[models.a]
family = "mean"
hidden = 8
bn_decay = 0.9
[tune]
models.a.hidden = {{ low = 4, high = 16, step = 4 }}
"training.learning_rate" = {{ low = 1e-4, high = 1e-1, log = true }}
"""


@pytest.fixture
def recipe(tmp_path, tiny_shards):
    """A recipe beside links to the training shards, and no test shards."""
    for shard in tiny_shards.glob("train-*"):
        (tmp_path / shard.name).symlink_to(shard)
    (tmp_path / "tuned.toml").write_text(RECIPE)
    return tmp_path / "tuned.toml"


def rows(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def tried(source, out, trials):
    """Search, and return the table as it was written."""
    return tune(source, trials, out=out, overrides=["training.epochs=1"]).folder.joinpath("trials.csv").read_text()


def test_a_search_is_the_same_whatever_the_test_set_is_and_however_it_was_interrupted(recipe, tmp_path, monkeypatch):
    whole = tried(recipe, tmp_path / "none", 3)  # there are no test shards
    (tmp_path / "test-0.tfrecord").write_bytes(b"poison")
    (tmp_path / "test-1.tfrecord").mkdir()
    tried(recipe, tmp_path / "poisoned", 1)
    fit, begun = Trainer.fit, []

    def killed(*arguments, **named):
        begun.append(fit(*arguments, **named))  # it leaves a checkpoint
        raise KilledError

    monkeypatch.setattr(Trainer, "fit", killed)
    with pytest.raises(KilledError):
        tried(recipe, tmp_path / "poisoned", 3)
    monkeypatch.undo()
    assert tried(recipe, tmp_path / "poisoned", 3) == whole
    assert not list((tmp_path / "poisoned" / "stages").glob("*test*"))


def test_the_best_recipe_is_one_whose_training_is_done_already(recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(["tune", str(recipe), "--trials", "2", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    table = rows(out / "tune" / "a")
    assert [row["state"] for row in table] == ["done", "done"]
    assert {key: float(table[0][key]) for key in printed["trials"][0]["values"]} == {
        "models.a.hidden": 8,  # the recipe's own values come first
        "training.learning_rate": 5e-3,
    }
    best = max(table, key=lambda row: float(row["holdout_gap"]))
    assert printed["best"]["holdout_gap"] == pytest.approx(float(best["holdout_gap"]), abs=1e-6)
    monkeypatch.chdir(recipe.parent)
    tuned = load_recipe(printed["recipe"])
    assert str(tuned.models["a"].config.hidden) == best["models.a.hidden"]
    assert tuned.training.learning_rate == float(best["training.learning_rate"])
    assert main(["train", printed["recipe"], "--out", str(out)]) == 0
    assert "train.a: done before" in capsys.readouterr().err
    assert main(["run", printed["recipe"], "--out", str(out)]) == 2  # which alone reads the test shards
    assert "test-*.tfrecord" in capsys.readouterr().err


def test_a_study_of_another_recipe_or_other_ranges_is_refused(recipe, tmp_path):
    out = tmp_path / "out"
    tune(recipe, 1, out=out)
    tune(recipe, 1, out=out, overrides=["budget_mb=2"])  # which changes no trial
    for change in ("training.batch_size=4", "seed=6", 'tune={ "models.a.hidden" = { low = 4, high = 8 } }'):
        with pytest.raises(UsageError, match="is the study of another recipe, other ranges or other data"):
            tune(recipe, 1, out=out, overrides=[change])


def test_a_trial_without_a_model_is_said_and_the_search_goes_on(recipe, tmp_path, capsys):
    ranges = 'tune={ "models.a.hidden" = { choices = [8, 100000] } }'
    assert main(["tune", str(recipe), "--trials", "5", "--out", str(tmp_path / "out"), "--set", ranges]) == 0
    table = rows(tmp_path / "out" / "tune" / "a")
    assert {row["models.a.hidden"]: row["state"] for row in table} == {"8": "done", "100000": "failed"}
    assert all("budget" in row["reason"] for row in table if row["state"] == "failed")
    assert len(list((tmp_path / "out" / "stages").glob("train.*"))) == 1  # equal trials are one training
    impossible = 'tune={ "models.a.hidden" = { choices = [100000, 200000] } }'
    assert main(["tune", str(recipe), "--trials", "2", "--out", str(tmp_path / "no"), "--set", impossible]) == 2
    assert "none of 2 trials has a model" in capsys.readouterr().err


def ranged(key, **keys):
    return f'tune={{ "{key}" = {{ {", ".join(f"{name} = {value}" for name, value in keys.items())} }} }}'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (ranged("models.a.hiden", low=1, high=2), r"tune.models.a.hiden: with 1, .*unknown key; did you mean 'hidden'"),
        (ranged("models.a.dropout", low=0, high=1), "with 1, models.a.dropout: must be less than 1"),
        (ranged("models.b.hidden", low=1, high=2), "the recipe has no model b; there are a"),
        (ranged("models.a.hidden", low=4, high=8.5), "with 8.5, models.a.hidden: must be a whole number"),
        (ranged("models.a.input_norm", low=0, high=1), r"takes true or false; give choices = \[true, false\]"),
        (ranged("models.a.hidden", low=4, high=8, step=0.5), "takes whole numbers, and step = 0.5 is none"),
        (ranged("data.limit.train", low=4, high=8), "only keys of models, training and averaging are tuned"),
        (ranged("seed", low=4, high=8), "only keys of models, training and averaging are tuned"),
        (ranged("averaging.epochs", low=1, high=2), r"the recipe has no \[averaging\]"),
        (ranged("training.workers", low=0, high=2), "changes the device and the speed of a training"),
        (ranged("training.patience", low=1, high=2), "decides when trials are compared"),
        (ranged("training.epochs", low=2, high=1), "give low and high, with low < high"),
        (ranged("training.epochs", low=0, high=1, log="true"), "log needs low > 0, and no step"),
        (ranged("training.epochs", low=1, high=2, step=0.3), "high - low must be a multiple of step"),
        (ranged("training.epochs", choices="[1, 2]", low=1), "choices stand alone"),
        (ranged("training.epochs", choices="[1, 1]"), "choices must differ"),
        (ranged("training.epochs", lo=1, high=2), "tune.training.epochs.lo: unknown key; did you mean 'low'"),
    ],
)
def test_a_range_that_cannot_be_tried_is_a_fault_before_any_data_is_opened(recipe, tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        tune(recipe, 1, out=tmp_path / "out", overrides=[override])
    assert not (tmp_path / "out").exists()


def test_ranges_are_read_with_and_without_quotes_and_change_no_run(recipe):
    table, _ = recipe_table(recipe)
    space = search_space(parse_recipe(table, recipe), table)
    assert [(key, each.whole) for key, each in space.items()] == [
        ("models.a.hidden", True),
        ("training.learning_rate", False),
    ]
    del table["tune"]
    assert parse_recipe(table, recipe).fingerprint == load_recipe(recipe).fingerprint
    assert "tune" not in parse_recipe(table, recipe).dump()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "--trials: 0 is not a number of trials"),
        (["--trials", "1", "--model", "b"], "no model b under models; there are a"),
        (["--trials", "1", "--set", 'models.b={ family = "mean" }', "--set", ranged("training.epochs", low=1, high=2)],
         "name it with --model, one of a, b"),
        (["--trials", "1", "--out", "s3://bucket/run"], "give --out a folder that all machines share"),
        (["--trials", "1", "--set", "tune={}"], "has no table"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_message(recipe, capsys, arguments, message):
    assert main(["tune", str(recipe), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(recipe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", str(recipe), "--trials", "1"]) == 2
    assert "[tune]'" in capsys.readouterr().err


def test_trials_below_the_median_of_at_least_five_are_given_up(tmp_path):
    space = {"training.learning_rate": Dimension(RangeSettings(low=0.0, high=1.0), whole=False)}
    study = Study(tmp_path / "s" / "study.journal", space, 1, "x")
    rng, finished, given_up = np.random.default_rng(3), [], 0
    for _ in range(12):
        trial, gaps = study.ask(), rng.random(3).tolist()
        for count in range(1, 4):
            others = [each[count - 1] for each in finished if len(each) >= count]
            below = len(finished) >= 5 and max(gaps[:count]) < statistics.median(others)
            stop = GivenUp(trial)(gaps[:count])
            assert stop == below
            if stop:
                break
        given_up += stop
        finished += [] if stop else [gaps]
        study.tell(trial, Outcome(None if stop else gaps[-1]))
    assert 0 < given_up < 7
    assert [each.gap for _, _, each in study.finished() if each.gap] == [gaps[-1] for gaps in finished]


def test_a_line_that_a_crash_left_half_written_is_forgotten(tmp_path):
    path, space = tmp_path / "s" / "study.journal", {"x": Dimension(RangeSettings(low=0.0, high=1.0), whole=False)}
    study = Study(path, space, 1, "x")
    study.tell(study.ask(), Outcome(0.5))
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    again = Study(path, space, 1, "x")
    again.tell(again.ask(), Outcome(0.6))
    assert [each.gap for _, _, each in Study(path, space, 1, "x").finished()] == [0.5, 0.6]


def test_a_training_that_is_given_up_ends_at_that_evaluation(tiny_manifests, tmp_path):
    shards, settings = Shards(tiny_manifests["train"]), TrainingSettings(batch_size=8, epochs=6, frames=4, device="cpu")
    config = parse_config({"family": "mean", "hidden": 4})
    tagger = build_tagger(config, shards.manifest.schema.widths, shards.manifest.schema.classes, 0)
    told = iter([0.3, 0.2, 0.1])
    evaluation = HoldoutEvaluation(lambda weights: next(told), 3, stop=lambda gaps: gaps[-1] < 0.25)
    trainer = Trainer(tagger, TrainingData(shards, np.arange(len(shards))), settings, seed=0, evaluation=evaluation)
    with pytest.raises(TrainingStoppedError, match=r"given up after 6 steps, with a hold-out GAP of 0\.2"):
        trainer.fit(training_phase(settings, len(shards)), tmp_path / "checkpoint")


@pytest.mark.slow
def test_a_search_that_was_killed_ends_as_one_that_was_not(recipe, tmp_path):
    options = ["--trials", "8", "--set", "training.epochs=30", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    for out in ("whole", "killed"):
        command = [*COMMAND, "tune", str(recipe), "--out", str(tmp_path / out), *options]
        journal = tmp_path / out / "tune" / "a" / "study.journal"
        for written in (50, 120) if out == "killed" else ():  # lines, of about 260
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while not journal.exists() or len(journal.read_bytes().splitlines()) < written:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, env=environment, check=True)
    assert rows(tmp_path / "killed" / "tune" / "a") == rows(tmp_path / "whole" / "tune" / "a")


@pytest.mark.slow
def test_workers_share_the_trials(recipe, tmp_path):
    assert main(["tune", str(recipe), "--trials", "5", "--out", str(tmp_path / "o"), "--devices", "cpu,cpu"]) == 0
    assert [row["state"] for row in rows(tmp_path / "o" / "tune" / "a")] == ["done"] * 5
