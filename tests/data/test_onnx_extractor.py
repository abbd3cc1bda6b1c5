"""A model knows what made its features: the PCA is in its file, and shards of another extractor are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from clips import tone, write_clip
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError, BudgetError
from reeltag.core.tensorfile import TensorFile
from reeltag.data.pca import ARRAYS, Projection, save_projections
from reeltag.pipeline.stages.check import beside_members, room
from reeltag.recipe.load import load_recipe

HEARD = ["--image", "none"]  # the sound alone, which needs no network


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twelve seconds of sound whose pitch says their class, through a PCA."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["file,labels"]
    for number in range(6):
        sound = tone(2, (300, 3000)[number % 2], loudness=0.1 * (number + 1))
        write_clip(folder / f"{number}.m4a", pictures=(), sound=sound)
        rows.append(f"{number}.m4a,{('low', 'high')[number % 2]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("out") / "shards"
    given = ["extract", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out), "--test-share", "0.3"]
    assert main([*given, *HEARD, "--fit-pca", "4"]) == 0
    return out


def run(shards, out, *sets):
    options = [part for item in (f"data.root={shards}", "training.epochs=2", *sets) for part in ("--set", item)]
    return main(["run", str(shards / "recipe.toml"), "--out", str(out), "--quiet", *options])


@pytest.fixture(scope="module")
def model(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert run(shards, out) == 0
    return out / "model.reeltag"


def copy(shards, folder, change):
    """The shards with another manifest."""
    shutil.copytree(shards, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["schema"]["features"][0]["extractor"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_the_file_holds_the_pca_of_the_shards(shards, model, tmp_path, capsys):
    stored = TensorFile(shards / "pca.safetensors")
    found = load_artifact(model).projections
    assert list(found) == ["audio"]
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found["audio"], name), stored.read(f"audio.{name}"))
    assert main(["inspect", str(model)]) == 0
    assert "extracted audio by logmel and a PCA" in capsys.readouterr().out
    assert main(["quantize", str(model), "--out", str(tmp_path / "small.reeltag")]) == 0
    assert load_artifact(tmp_path / "small.reeltag").projections["audio"].hash == found["audio"].hash


def test_the_budget_counts_the_pca(shards, model, tmp_path):
    recipe = load_recipe(shards / "recipe.toml", [f"data.root={shards}"])
    beside = beside_members(recipe)
    bytes_of_it = 4 * (128 + 128 * 4 + 4)
    assert room(recipe, replace(beside, projections={})) - room(recipe, beside) >= bytes_of_it
    artifact = load_artifact(model)
    without = save_artifact(tmp_path / "without.reeltag", replace(artifact, projections={}))
    size = save_artifact(tmp_path / "with.reeltag", artifact)
    assert bytes_of_it <= size - without <= bytes_of_it + 1024  # what `room` reserves beside the arrays
    with pytest.raises(BudgetError, match="over the budget"):
        save_artifact(tmp_path / "tight.reeltag", artifact, without)


def test_a_file_from_before_opens(model, tmp_path):
    artifact = load_artifact(model)
    plain = tuple(feature.model_copy(update={"extractor": None}) for feature in artifact.schema.features)
    old = replace(artifact, schema=artifact.schema.model_copy(update={"features": plain}), projections={})
    save_artifact(tmp_path / "old.reeltag", old)
    assert load_artifact(tmp_path / "old.reeltag").projections == {}
    assert b"#pca" not in (tmp_path / "old.reeltag").read_bytes()


def other(projection):
    return Projection(projection.mean + 1, projection.components, projection.scale)


def test_another_pca_is_refused_before_anything_trains(shards, model, tmp_path, capsys):
    found = load_artifact(model).projections["audio"]
    save_projections(tmp_path / "other.safetensors", {"audio": other(found)}, {"audio": {"name": "logmel"}})
    message = fails(
        capsys, "run", shards / "recipe.toml", "--out", tmp_path / "run", "--set", f"data.root={shards}",
        "--set", f"data.pca={tmp_path / 'other.safetensors'}",
    )  # fmt: skip
    assert "data.pca" in message
    assert "is not the PCA that data.schema names" in message
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("kept", [("mean",), ("mean", "components", "scale")])
def test_a_file_with_a_part_of_a_pca_or_another_is_refused(model, tmp_path, monkeypatch, kept):
    artifact = load_artifact(model)
    monkeypatch.setattr("reeltag.artifact.file.ARRAYS", kept)
    altered = replace(artifact, projections={"audio": other(artifact.projections["audio"])})
    save_artifact(tmp_path / "altered.reeltag", altered)
    monkeypatch.setattr("reeltag.artifact.file.ARRAYS", ARRAYS)
    expected = "not the one that its schema names" if kept == ARRAYS else "an incomplete PCA, audio.mean"
    with pytest.raises(ArtifactError, match=expected):
        load_artifact(tmp_path / "altered.reeltag")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda origin: origin.update(name="onnx:v.onnx", hash="0" * 64),
            "from onnx:v.onnx, but the model expects it from",
        ),
        (lambda origin: origin.update(hash="0" * 64), "from logmel with other weights or settings"),
        (lambda origin: origin.pop("decoding"), "'audio' of these shards were extracted by an earlier reeltag"),
        (lambda origin: origin.update(decoding=9), "'audio' of the model were extracted by an earlier reeltag"),
        (lambda origin: origin.update(projection="0" * 64), "from logmel through another PCA"),
    ],
)
def test_shards_of_another_extractor_are_refused(shards, model, tmp_path, capsys, change, message):
    folder = copy(shards, tmp_path / "others", change)
    pattern = folder / "test-*.tfrecord"
    for arguments in (["predict", model, pattern], ["evaluate", model, pattern]):
        assert message in fails(capsys, *arguments)
    assert message in fails(capsys, "predict", model, pattern, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_shards_of_the_same_extractor_or_without_a_manifest_are_taken(shards, model, tmp_path, capsys):
    assert main(["evaluate", str(model), str(shards / "test-*.tfrecord")]) == 0
    folder = copy(shards, tmp_path / "same", lambda origin: None)
    (folder / "manifest.json").unlink()
    assert main(["predict", str(model), str(folder / "test-*.tfrecord")]) == 0
    (folder / "manifest.json").write_text("[]")  # of something else
    assert main(["predict", str(model), str(folder / "test-*.tfrecord")]) == 0
