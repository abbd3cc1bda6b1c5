"""Features of other formats without an import: predict, evaluate and a recipe give what their shards give."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import reeltag
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import DataError, UsageError
from reeltag.core.storage import file_hash
from reeltag.data.import_features import import_features
from reeltag.data.schema import Schema
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

NAMES = [f"clip{number:02}" for number in range(40)]
WORDS = ("cat", "dog", "eel")
SCHEMA = Schema(features=({"name": "rgb", "width": 6},), dtype="float32", classes=3, max_frames=5)


def labels_of(number: int) -> list[str]:
    return [WORDS[number % 3]] if number % 2 else sorted({WORDS[number % 3], WORDS[number % 5 % 3]})


def frames_of(number: int) -> np.ndarray:
    shown = np.isin(WORDS, labels_of(number)).repeat(2)
    return (np.random.default_rng(number).normal(size=(3 + number % 4, 6)) + 3 * shown).astype(np.float32)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Current folder with a folder of NumPy files, their labels, their shards in one folder, and a model."""
    monkeypatch.chdir(tmp_path)
    Path("features").mkdir()
    for number, name in enumerate(NAMES):
        np.save(f"features/{name}.npy", frames_of(number))
    with Path("labels.csv").open("w", newline="") as file:
        rows = ([name, "|".join(labels_of(number))] for number, name in enumerate(NAMES))
        csv.writer(file).writerows([["id", "labels"], *rows])
    items = [(name, {"rgb": frames_of(number)}, labels_of(number)) for number, name in enumerate(NAMES)]
    import_features(items, None, "shards", test_share=0)
    config = parse_config({"family": "netvlad", "clusters": 2, "hidden": 4})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    save_artifact(Path("model.reeltag"), Artifact(SCHEMA, WORDS, (Member("a", config, 1.0, state),), {}))
    return tmp_path


def output(capsys, *arguments: str) -> str:
    capsys.readouterr()
    code = main(arguments)
    found = capsys.readouterr()
    assert code == 0, found.err
    return found.out


def test_predictions_are_those_of_the_shards(work, capsys):
    of_shards = output(capsys, "predict", "model.reeltag", "shards/*.tfrecord")
    assert len(of_shards.splitlines()) == len(NAMES)
    assert output(capsys, "predict", "model.reeltag", "features") == of_shards
    assert output(capsys, "predict", "model.reeltag", "features/*.npy") == of_shards
    one = output(capsys, "predict", "model.reeltag", "features/clip07.npy")
    assert one == of_shards.splitlines(keepends=True)[7]
    for place, out in (("shards/*.tfrecord", "a.csv"), ("features", "b.csv")):
        output(capsys, "predict", "model.reeltag", place, "--out", out)
    assert file_hash(Path("a.csv")) == file_hash(Path("b.csv"))


def test_metrics_are_those_of_the_shards(work, capsys):
    of_shards = output(capsys, "evaluate", "model.reeltag", "shards/*.tfrecord")
    assert output(capsys, "evaluate", "model.reeltag", "features", "--labels", "labels.csv") == of_shards
    scores = reeltag.evaluate("model.reeltag", "features", labels="labels.csv")
    assert scores.summary() == reeltag.evaluate("model.reeltag", "shards/*.tfrecord").summary()


def test_names_are_those_of_the_model_whatever_occurs(work, capsys):
    lines = [line for line in Path("labels.csv").read_text().splitlines() if "cat" not in line]
    Path("some").mkdir()
    for line in lines[1:]:
        name = line.split(",")[0]
        Path(f"features/{name}.npy").rename(f"some/{name}.npy")
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    predictions = list(reeltag.load("model.reeltag").predict_shards("some", labelled=True, labels="labels.csv"))
    assert [len(part.ids) for part in predictions] == [len(lines) - 1]
    named = {WORDS[c] for part in predictions for c in np.flatnonzero(part.labels.numpy().any(0))}
    assert named == {"dog", "eel"}


def test_what_does_not_fit_is_said(work):
    model = reeltag.load("model.reeltag")
    with pytest.raises(UsageError, match="features: has no labels"):
        model.evaluate_shards("features")
    nameless = reeltag.load("model.reeltag")
    nameless.artifact = replace(nameless.artifact, label_names=None)
    with pytest.raises(UsageError, match=r"labels.csv: the labels name classes, and the model has no names"):
        nameless.evaluate_shards("features", labels="labels.csv")
    with pytest.raises(UsageError, match="shards hold their own labels"):
        model.evaluate_shards("shards/*.tfrecord", labels="labels.csv")
    with pytest.raises(UsageError, match="not of the kind of the other files"):
        list(model.predict_shards(["features", "shards/*.tfrecord"]))
    with pytest.raises(UsageError, match="folder; name its shards"):
        list(model.predict_shards("shards"))
    Path("labels.csv").write_text("".join(Path("labels.csv").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"clip39.npy: the labels do not have 'clip39'"):
        model.evaluate_shards("features", labels="labels.csv")
    np.save("features/clip03.npy", frames_of(3).astype(np.uint8))
    with pytest.raises(DataError, match=r"clip03.npy: 'rgb' is \[6, 6\] uint8, expected \[T, 6\] float32"):
        list(model.predict_shards("features"))


RECIPE = """
name = "direct"
budget_mb = 1
[data]
train = {train}
test = {test}
{more}
holdout = {{ fraction = 0.2 }}
[data.schema]
features = [{{ name = "rgb", width = 6 }}]
dtype = "float32"
classes = 3
max_frames = 5
[training]
epochs = 4
batch_size = 8
frames = 5
learning_rate = 1e-2
[models.mean]
family = "mean"
hidden = 8
bn_decay = 0.9
"""


def test_the_plan_has_the_imports_and_their_bytes(work, capsys):
    more = 'labels = "labels.csv"'
    Path("r.toml").write_text(RECIPE.format(train='["features"]', test='["features/clip0*.npy"]', more=more))
    stages = json.loads(output(capsys, "run", "r.toml", "--dry-run", "--json"))["stages"]
    noted = {stage["name"]: stage["note"] for stage in stages if "import" in stage["name"]}
    size = sum(path.stat().st_size for path in Path("features").iterdir())
    assert noted == {"import.train": f"40 files, {size:,} bytes, to shards", "import.test": noted["import.test"]}
    Path("r.toml").write_text(RECIPE.format(train='["shards/*.tfrecord"]', test='["shards/*.tfrecord"]', more=more))
    assert main(["run", "r.toml"]) == 2
    assert "data.labels: is for features that are not shards" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_trains_the_same_weights_from_features_and_from_their_shards(work, capsys):
    Path("tests").mkdir()
    for name in NAMES[30:]:
        Path(f"features/{name}.npy").rename(f"tests/{name}.npy")
    import_features("features", "labels.csv", "imported", test="tests", label_names=None)
    manifest = json.loads(Path("imported/manifest.json").read_text())
    assert manifest["schema"]["features"] == [{"name": "features", "width": 6}]
    places = {
        "shards": ('["imported/train-*.tfrecord"]', '["imported/test-*.tfrecord"]', ""),
        "direct": ('["features"]', '["tests"]', 'labels = "labels.csv"'),
    }
    for name, (train, test, more) in places.items():
        names = more or 'label_names = "imported/label_names.csv"'
        recipe = RECIPE.format(train=train, test=test, more=names).replace('"rgb"', '"features"')
        Path(f"{name}.toml").write_text(recipe)
        output(capsys, "run", f"{name}.toml", "--out", f"runs/{name}")
    digests = [
        json.loads(next(Path(f"runs/{name}/stages").glob("data.train-*/stage.json")).read_text())["digest"]
        for name in places
    ]
    assert digests[0] == digests[1]
    states = [file_hash(next(Path(f"runs/{name}/stages").glob("train.mean-*/model.reeltag"))) for name in places]
    assert states[0] == states[1]
    again = output(capsys, "run", "direct.toml", "--out", "runs/direct")
    assert "runs/direct/model.reeltag" in again
