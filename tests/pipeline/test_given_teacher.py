"""External teachers: predictions in files are checked, become soft targets, and teach."""

import numpy as np
import pytest
import torch

import reeltag
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError, UsageError
from reeltag.data.external_predictions import read_predictions
from reeltag.data.shards import Manifest, id_hash
from reeltag.data.soft_targets import SoftTargets
from reeltag.pipeline.plan import plan
from reeltag.pipeline.stages.files import split
from reeltag.recipe.load import load_recipe

RECIPE = """name = "given"
budget_mb = 1
[data]
root = "{root}"
train = ["train-*"]
test = ["test-*"]
holdout = {{ fraction = 0.34 }}
[data.schema]
features = [{{ name = "rgb", width = 6 }}, {{ name = "audio", width = 2 }}]
classes = 8
[training]
epochs = 1
batch_size = 4
frames = 4
device = "cpu"
[distillation]
predictions = {{ mine = "{predictions}" }}
[students.s]
family = "mean"
teachers = ["mine"]
"""


def ids_of(shards):
    from reeltag.data.shards import read_examples
    from reeltag.data.synthetic import SyntheticSettings

    schema = SyntheticSettings(classes=8, rgb=6, audio=2, frames=(4, 9), order_pairs=1).record_schema
    return [video.id for video in read_examples(sorted(shards.glob("train-*")), schema)]


def probabilities_of(ids):
    return np.random.default_rng(5).random((len(ids), 8), np.float32)


def write_npz(path, ids, probabilities):
    order = np.random.default_rng(1).permutation(len(ids))
    np.savez(path, ids=np.array(ids)[order], probabilities=probabilities[order])
    return path


def write_recipe(tmp_path, tiny_shards, predictions):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(root=tiny_shards, predictions=predictions))
    return path


def targets_of(run):
    (folder,) = run.glob("stages/targets.mine-*")
    (data,) = run.glob("stages/data.train-*")
    manifest = Manifest.load(data / "manifest.safetensors")
    return SoftTargets(folder, manifest), manifest, folder


def test_students_without_models_learn_from_a_file(tmp_path, tiny_shards):
    ids = ids_of(tiny_shards)
    wanted = probabilities_of(ids)
    recipe = write_recipe(tmp_path, tiny_shards, write_npz(tmp_path / "t.npz", ids, wanted))
    done = reeltag.run(recipe, out=tmp_path / "run", overrides=["distillation.top_k=dense"])
    assert list(done.results["members"]) == ["s"]
    targets, manifest, folder = targets_of(tmp_path / "run")
    train, holdout = split(load_recipe(recipe), manifest)
    by_id = {id_hash(name): row for name, row in zip(ids, wanted, strict=True)}
    expected = np.stack([by_id[hashed] for hashed in manifest.id_hashes[train].tolist()])
    torch.testing.assert_close(targets.rows(train), torch.from_numpy(expected), rtol=0, atol=1e-3)  # float16
    stored = np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    assert np.isnan(stored).all(1).sum() == len(holdout) > 0


def test_targets_depend_on_the_content_of_the_file_and_not_on_its_path(tmp_path, tiny_shards):
    ids = ids_of(tiny_shards)
    first = write_npz(tmp_path / "t.npz", ids, probabilities_of(ids))
    recipe = write_recipe(tmp_path, tiny_shards, first)

    def names():
        main(["run", str(recipe), "--out", str(tmp_path / "run")])
        return {path.name for path in (tmp_path / "run" / "stages").iterdir()}

    before = names()
    moved = tmp_path / "moved.npz"
    first.rename(moved)
    write_recipe(tmp_path, tiny_shards, moved)
    assert names() == before
    write_npz(moved, ids, 1 - probabilities_of(ids))
    more = names() - before
    assert {name.split("-")[0] for name in more} >= {"targets.mine", "train.s", "pack"}


def test_predictions_of_reeltag_as_csv_teach(tmp_path, tiny_shards, tiny_model):
    written = tmp_path / "p.csv"
    reeltag.predict_to_file(tiny_model, [str(tiny_shards / "train-*")], written)
    given = read_predictions(written, 8)
    predictor, hashes = reeltag.load(tiny_model), []
    rows = []
    for part in predictor.predict_shards([str(tiny_shards / "train-*")]):
        hashes += [id_hash(name) for name in part.ids]
        rows.append(part.probabilities.numpy())
    np.testing.assert_allclose(given.rows(np.array(hashes, np.uint64)), np.concatenate(rows), atol=1e-6)


def csv_with(tmp_path, *lines, header="VideoId,LabelConfidencePairs"):
    path = tmp_path / "p.csv"
    path.write_text("\n".join([header, *lines, ""]))
    return path


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["a,0 0.5", "a,1 0.5"], "'a' occurs twice"),
        (["a,0 0.5", "b,8 0.5"], "line 3: 8 is not one of the classes 0 to 7"),
        (["a,-1 0.5"], "-1 is not one of the classes"),
        (["a,0.5 0.5"], "0.5 is not one of the classes"),
        (["a,0 1.5"], "1.5 is not a probability"),
        (["a,0 nan"], "nan is not a probability"),
        (["a,0 0.1 0 0.2"], "a class occurs twice"),
        (["a,0 0.1 1"], "line 2: should be an id, and pairs"),
        (["a"], "line 2: has 1 cell, and the header 2 columns"),
        (["a,x 1"], "line 2: should be an id, and pairs"),
        ([], "holds no predictions"),
    ],
)
def test_faults_of_a_csv_name_the_line(tmp_path, lines, fault):
    with pytest.raises(UsageError) as caught:
        read_predictions(csv_with(tmp_path, *lines), 8)
    assert fault in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "p.csv"))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="line 1: should be VideoId"):
        read_predictions(csv_with(tmp_path, "a,0 1", header="id,tags"), 8)
    with pytest.raises(UsageError, match=r"\.csv \(Kaggle's columns\) or \.npz"):
        read_predictions(tmp_path / "p.json", 8)
    with pytest.raises(UsageError, match="cannot be read"):
        read_predictions(tmp_path / "none.npz", 8)
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(UsageError, match=r"is not an \.npz file"):
        read_predictions(tmp_path / "text.npz", 8)


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"ids": np.array(["a"])}, "no array"),
        ({"ids": np.array(["a"]), "probabilities": np.zeros((1, 7))}, r"give ids \[N\] as text and probabilities"),
        ({"ids": np.array([1]), "probabilities": np.zeros((1, 8))}, "as text"),
        ({"ids": np.array(["a"], object), "probabilities": np.zeros((1, 8))}, "is not an .npz file with ids"),
        ({"ids": np.array(["a", "b"]), "probabilities": np.full((2, 8), 2.0)}, "row 0: 2 is not a probability"),
        ({"ids": np.array([b"\xff"]), "probabilities": np.zeros((1, 8))}, "is not UTF-8"),
    ],
)
def test_faults_of_arrays_are_reported_and_pickles_never_read(tmp_path, arrays, fault):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UsageError, match=fault):
        read_predictions(tmp_path / "p.npz", 8)


def test_a_video_that_was_not_predicted_ends_the_run(tmp_path, tiny_shards, capsys):
    ids = ids_of(tiny_shards)[1:]
    recipe = write_recipe(tmp_path, tiny_shards, write_npz(tmp_path / "t.npz", ids[:9], probabilities_of(ids[:9])))
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "predict every training video by its id" in capsys.readouterr().err


def test_contradictions_of_a_recipe_are_named(tmp_path, tiny_shards):
    recipe = write_recipe(tmp_path, tiny_shards, tmp_path / "none.npz")
    with pytest.raises(UsageError, match=r"distillation\.predictions\.mine: there is no file"):
        plan(load_recipe(recipe))
    for change, fault in (
        ('students.s.teachers=["other"]', "teachers may be mine"),
        ('distillation.predictions={rnn="x.csv"}', "rnn: is the name of a family"),
        ("students.s.level=2", "no first-level student of mine to teach it"),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(recipe, [change])
        assert fault in str(caught.value)
