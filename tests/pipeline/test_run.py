"""A complete recipe writes one file, and a change recomputes only the stages that depend on it."""

import html
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

import reeltag
from conftest import TINY_RUN
from reeltag.artifact.file import Artifact, Member, load_artifact, save_artifact, tensor_bytes
from reeltag.artifact.quantization.encodings import QuantizedTensor
from reeltag.cli.main import main
from reeltag.core.progress import Progress
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.pipeline import executor
from reeltag.pipeline.plan import plan
from reeltag.pipeline.run_folder import outputs_at
from reeltag.pipeline.stages.imported_model import ImportedModelStages
from reeltag.recipe.load import load_recipe
from small_models import in_encoding

RECIPE = (
    """
name = "tiny"
seed = 5
budget_mb = 0.3
"""
    + TINY_RUN
    + """[models.a]
family = "netvlad"
clusters = 8
hidden = 40
bn_decay = 0.9
[models.b]
family = "netvlad"
clusters = 4
hidden = 40
bn_decay = 0.9
"""
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(RECIPE)
    assert main(["run", str(folder / "tiny.toml"), "--out", str(folder / "out")]) == 0
    return folder


def read_results(out):
    return json.loads((out / "results.json").read_text())


def planned(folder, *overrides):
    recipe = load_recipe(folder / "tiny.toml", overrides)
    done = executor.statuses(plan(recipe), folder / "out")
    return {name for name, status in done.items() if status != "done"}


def test_a_run_ends_with_a_file_within_the_budget_that_beats_the_prior(finished):
    results = read_results(finished / "out")
    size = (finished / "out" / "model.reeltag").stat().st_size
    assert results["bytes"] == size <= 300_000
    assert results["test"]["file"]["gap"] > results["test"]["prior"]["gap"] + 0.1
    assert results["holdout_gap"]["file"] > results["holdout_gap"]["prior"] + 0.1
    assert sum(entry["weight"] for entry in results["shipped"]) == pytest.approx(1)
    assert len(results["examples"]) == 5


def test_the_report_names_size_gap_and_baseline(finished):
    report = (finished / "out" / "report" / "report.md").read_text()
    results = read_results(finished / "out")
    for gap in (results["test"]["file"]["gap"], results["test"]["prior"]["gap"], results["holdout_gap"]["file"]):
        assert f"{gap:.5f}" in report


def test_the_results_and_the_report_name_the_cpu(finished):
    machine = read_results(finished / "out")["environment"]["machine"]
    assert machine["cpus"] == str(os.cpu_count())
    assert machine["cpu"]
    page = (finished / "out" / "report" / "report.html").read_text()
    assert html.escape(machine["cpu"]) in page
    assert "processor" not in machine


def test_a_second_run_does_nothing(finished):
    assert planned(finished) == set()
    before = {path: path.stat().st_mtime_ns for path in (finished / "out" / "stages").rglob("*")}
    assert main(["run", str(finished / "tiny.toml"), "--out", str(finished / "out")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "out" / "stages").rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("budget_mb=0.25", {"ensemble", "pack", "test.file", "report"}),
        ("ensemble.trials=9", {"ensemble", "pack", "test.file", "report"}),
        (
            "models.b.clusters=2",
            {f"{s}.b" for s in ("train", "average", "quantize", "predict", "test")}
            | {"ensemble", "pack", "test.file", "report"},
        ),
        (
            "averaging.time_constant=7",
            # Trainings too: their checkpoints, from which averaging goes on, are removed when it is finished.
            {f"{s}.{m}" for s in ("train", "average", "quantize", "predict", "test") for m in "ab"}
            | {"ensemble", "pack", "test.file", "report"},
        ),
        ("training.workers=1", set()),
    ],
)
def test_a_change_recomputes_only_the_stages_that_depend_on_it(finished, override, redone):
    assert planned(finished, override) == redone


def test_going_back_to_an_earlier_recipe_recomputes_nothing(finished):
    out = finished / "out"
    before = (out / "model.reeltag").read_bytes()
    assert main(["run", str(finished / "tiny.toml"), "--out", str(out), "--set", "ensemble.trials=3"]) == 0
    assert planned(finished) == set()
    assert main(["run", str(finished / "tiny.toml"), "--out", str(out)]) == 0
    assert (out / "model.reeltag").read_bytes() == before


def test_dry_run_prints_every_stage_and_touches_nothing(finished, tmp_path, capsys):
    assert main(["run", str(finished / "tiny.toml"), "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for name in ("synthetic", "data.train", "train.a", "quantize.b", "ensemble", "pack", "test.file"):
        assert name in printed
    assert "uniform-8" in printed
    assert not (tmp_path / "new").exists()


def test_dry_run_says_which_data_are_not_there(finished, tmp_path, capsys):
    assert main(["run", "audioset-small", "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "a run would be refused: bal_train-*.tfrecord: no file in" in capsys.readouterr().out
    assert main(["run", str(finished / "tiny.toml"), "--out", str(tmp_path / "new"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing_data"] == ""


def test_train_writes_a_float_file_and_run_continues_from_it(finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", str(finished / "tiny.toml"), "--model", "b", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "b.reeltag")
    recipe = load_recipe(finished / "tiny.toml")
    done = executor.statuses(plan(recipe), out)
    assert {name for name, status in done.items() if status == "done"} == {
        "synthetic", "data.train", "train.b", "average.b",
    }  # fmt: skip


def test_messages_say_which_part_of_the_hold_out_a_gap_is_from(finished, tmp_path, capsys):
    out = shutil.copytree(finished / "out", tmp_path / "out")
    for stage in ("average.a-*", "predict.a-*", "quantize.a-*"):
        (folder,) = out.glob(f"stages/{stage}")
        shutil.rmtree(folder)
    assert main(["run", str(finished / "tiny.toml"), "--out", str(out)]) == 0
    said, results = capsys.readouterr(), read_results(out)
    half, other = (results["holdout_gap"][key] for key in ("videos", "chosen_on"))
    whole = rf"GAP on all {half + other} hold-out videos: "
    assert re.search(whole + r"plain \d\.\d{5}, averaged \d\.\d{5}; kept ", said.err)
    for encoding in ("float32", "uniform-8"):
        assert re.search(whole + encoding + r" \d\.\d{5}$", said.err, re.MULTILINE)
    assert f"; {half} videos not used to choose)" in said.out
    assert "\n5 test videos:\n" in said.out


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Write a recipe with three imported members, one of them in 8 bits and one coded."""
    folder = tmp_path_factory.mktemp("imported")
    recipe = RECIPE.partition("[models.a]")[0]
    (folder / "tiny.toml").write_text(
        recipe + "[imported]\n" + "".join(f'{name} = "{folder}/{name}.reeltag"\n' for name in "xyz")
    )
    schema = load_recipe(folder / "tiny.toml").data.record_schema
    for name, encoding, table in (
        ("x", "uniform-8", {"family": "mean", "hidden": 600}),
        ("y", "float32", {"family": "rnn", "cells": 16}),
        ("z", "coded@0.3", {"family": "mean", "hidden": 1600}),
    ):
        config = parse_config(table)
        state = build_tagger(config, schema.widths, schema.classes, 1).state_dict()
        artifact = Artifact(schema, None, (Member("elsewhere", config, 1.0, state),), {})
        save_artifact(folder / f"{name}.reeltag", in_encoding(artifact, encoding))
    return folder


def test_imported_members_are_packed_like_any_other(imported):
    out = imported / "out"
    assert main(["run", str(imported / "tiny.toml"), "--out", str(out)]) == 0
    weights = {entry["name"]: entry["weight"] for entry in read_results(out)["shipped"]}
    artifact = load_artifact(out / "model.reeltag")
    assert {member.name: member.weight for member in artifact.members} == pytest.approx(weights)
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 32), dtype=np.uint8)
    expected = 0.0
    for member in artifact.members:
        path = imported / f"{member.name}.reeltag"
        (source,) = load_artifact(path).members
        for name, value in source.state.items():
            if isinstance(value, QuantizedTensor):  # they stay as they are
                for part, tensor in value.parts().items():
                    assert torch.equal(member.state[name].parts()[part], tensor)
        expected = expected + weights[member.name] * reeltag.load(path).predict(frames)
    np.testing.assert_allclose(reeltag.load(out / "model.reeltag").predict(frames), expected, atol=1e-3)


def test_an_imported_coded_member_counts_with_the_bytes_of_its_file(imported, tmp_path):
    """Its weights in 8 bits, as they are in memory, would not fit the budget even if coding halved them."""
    (member,) = load_artifact(imported / "z.reeltag").members
    size = sum(tensor_bytes(imported / "z.reeltag")["elsewhere"].values())
    held = sum(value.nbytes for value in member.state.values())
    budget = (imported / "z.reeltag").stat().st_size + 10_000
    assert held / 2 > budget
    arguments = ["run", str(imported / "tiny.toml"), "--out", str(tmp_path), "--set", f"budget_mb={budget / 1e6}"]
    assert main([*arguments, "--set", 'ensemble.members=["z"]', "--dry-run"]) == 0
    recipe = load_recipe(imported / "tiny.toml")
    assert ImportedModelStages(recipe, "z").sizes("uniform-8") == [size]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.synthetic.rgb=25",
            r"imported.x: .* other data .*: features rgb 24 \+ audio 8 and not rgb 25 \+ audio 8;",
        ),
        ("data.synthetic.frames=[5, 9]", "imported.x: .* other data .*: max_frames 12 and not 9; make"),
        ("imported.x=nowhere.reeltag", "imported.x: nowhere.reeltag: no such file"),
        ("budget_mb=0.005", "over the budget of 5,000 bytes; members: x .*, y .*; no single member would fit"),
    ],
)
def test_a_member_that_does_not_fit_is_refused_before_any_data_is_made(imported, tmp_path, capsys, override, message):
    arguments = ["run", str(imported / "tiny.toml"), "--out", str(tmp_path / "out"), "--set", override]
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_moved_data_is_read_again_but_nothing_is_trained_again(finished, tmp_path):
    shards = next((finished / "out" / "stages").glob("synthetic-*"))
    layout = load_recipe(finished / "tiny.toml").data.record_schema
    features = ", ".join(f"{{name = '{f.name}', width = {f.width}}}" for f in layout.features)
    data = f"""[data]
train = ["train-*"]
test = ["test-*"]
schema = {{ features = [{features}], classes = 12, max_frames = 12 }}
"""
    text = RECIPE.replace(RECIPE[RECIPE.index("[data.synthetic]") : RECIPE.index("[training]")], data)
    (tmp_path / "tiny.toml").write_text(text.replace("epochs = 6", "epochs = 1"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for shard in shards.glob("*.tfrecord"):
        (copy / shard.name).write_bytes(shard.read_bytes())
    recipes = [load_recipe(tmp_path / "tiny.toml", [f"data.root={root}"]) for root in (shards, copy)]
    executor.run(plan(recipes[0]), tmp_path / "out", Progress())
    folders = set((tmp_path / "out" / "stages").iterdir())
    (packed,) = (tmp_path / "out" / "stages").glob("pack-*/model.reeltag")
    told = load_artifact(packed).provenance
    held_out = told["holdout_gap"]["videos"] + told["holdout_gap"]["chosen_on"]
    assert told["data"] == {"shards": ["train-*"], "videos": 300 - held_out}
    executor.run(plan(recipes[1]), tmp_path / "out", Progress())
    new = {path.name.rsplit("-", 1)[0] for path in set((tmp_path / "out" / "stages").iterdir()) - folders}
    assert new == {"data.train", "data.test"}


def test_partial_files_of_a_killed_run_are_removed_but_not_those_of_another_process(tmp_path):
    out = tmp_path / "out"
    left, other = out / "report" / ".report.md.1.partial", out / "stages" / "train.b-0" / ".checkpoint.2.partial"
    for path in (left, other):
        path.parent.mkdir(parents=True)
        path.touch()
    (out / "format.json").write_text('{"format": 2}')
    with outputs_at(out).claimed():
        pass
    assert not left.exists()
    assert other.exists()


def test_an_interrupt_exits_with_130_and_says_how_to_resume(finished, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "run", interrupted)
    assert main(["run", str(finished / "tiny.toml"), "--out", str(finished / "out")]) == 130
    assert "the same command resumes from its last checkpoint" in capsys.readouterr().err
