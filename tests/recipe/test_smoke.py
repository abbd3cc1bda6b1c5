"""Shortened recipes: a smoke run of every stage, and limits on the number of videos."""

import json
import re

import pytest

from conftest import TINY_RUN, records_of
from reeltag.cli.main import main
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.shards import Manifest, Shards, scan
from reeltag.pipeline.executor import statuses
from reeltag.pipeline.plan import plan
from reeltag.recipe.load import load_recipe
from reeltag.recipe.smoke import smoked
from reeltag.training.log import LOG, read_rows

RECIPE = f"""
name = "tiny"
budget_mb = 0.3
{TINY_RUN}[models.a]
family = "mean"
training = {{ epochs = 50, batch_size = 100 }}
[models.b]
family = "netvlad"
clusters = 4
hidden = 16
[distillation]
teachers = 1
folds = 2
training = {{ epochs = 9 }}
[students.c]
family = "mean"
training = {{ epochs = 9 }}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def manifest(out, split):
    (path,) = out.glob(f"stages/data.{split}-*/manifest.safetensors")
    return Manifest.load(path)


def test_a_smoke_run_runs_every_stage_with_one_batch_in_its_own_folder(recipe, tmp_path, capsys):
    out, small = tmp_path / "out", tmp_path / "out-smoke"
    assert main(["run", str(recipe), "--out", str(out), "--smoke", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{small}: the recipe works from end to end; the metrics of such a short run mean nothing\n"
    assert said.err == ""
    assert not out.exists()
    whole = load_recipe(recipe)
    assert {stage.name for stage in plan(whole)} == {path.name.rpartition("-")[0] for path in small.glob("stages/*")}
    trainings = list(small.glob(f"stages/*/{LOG}"))
    assert len(trainings) == len(list(small.glob("logs/*.csv"))) > 8
    for log in trainings:
        (row,) = read_rows(log)  # a single step
        assert row.step == (2 if log.parent.name.startswith("average") else 1)
    assert len(manifest(small, "train")) == 64
    assert len(manifest(small, "test")) == 16
    assert json.loads((small / "results.json").read_text())["bytes"] <= 300_000


def test_a_shortened_recipe_keeps_its_batches_and_architectures(recipe):
    whole, small = load_recipe(recipe), smoked(load_recipe(recipe))
    for name, model in whole.models.items():
        assert small.models[name].config == model.config
        before, after = (each.training_with(each.models[name].training) for each in (whole, small))
        assert after == before.model_copy(update={"epochs": after.epochs})
    assert small.distillation.folds == whole.distillation.folds


def limited(recipe, **limit):
    return load_recipe(recipe, [f"data.limit.{split}={count}" for split, count in limit.items()])


def test_a_limit_takes_the_first_videos_and_reads_no_others(tiny_shards, tiny_schema, tmp_path):
    paths = sorted(tiny_shards.glob("train-*"))
    whole, half = scan(paths, tiny_schema), len(records_of(paths[0]))
    broken = tmp_path / "broken.tfrecord"
    write_shard(broken, [*records_of(paths[1])[:3], b"no record"])
    for count in (1, half - 1, half, half + 3):
        few = scan([paths[0], broken], tiny_schema, limit=count)
        assert len(few) == count
        assert len(few.shards) == 1 + (count > half)
        assert [Shards(few).read(n).id for n in range(count)] == [Shards(whole).read(n).id for n in range(count)]
    assert len(scan(paths, tiny_schema, limit=10**6)) == len(whole)


def test_a_limit_is_part_of_what_decides_the_result_and_its_absence_is_not(recipe, tmp_path):
    out = tmp_path / "out"
    few = limited(recipe, train=50)
    assert few.fingerprint != load_recipe(recipe).fingerprint
    assert main(["train", str(recipe), "--model", "b", "--out", str(out), "--set", "data.limit.train=50"]) == 0
    assert len(manifest(out, "train")) == 50
    assert statuses(plan(few), out)["average.b"] == "done"
    for other in (load_recipe(recipe), limited(recipe, train=51)):
        assert statuses(plan(other), out)["data.train"] == "to do"
    more = ["--set", "data.limit.train=51"]  # in the same shards
    assert main(["train", str(recipe), "--model", "b", "--out", str(out), *more]) == 0
    assert len(list(out.glob("stages/train.b-*"))) == 2
    assert few.data.expected_videos == 50
    assert "limit" not in json.dumps(dict(plan(load_recipe(recipe))[1].parameters))


def test_progress_does_not_wait_for_shards_that_a_limit_leaves_unread(recipe, tmp_path, capsys):
    few = ["data.limit.train=20", "data.synthetic.rgb=512"]
    sets = [part for each in few for part in ("--set", each)]
    assert main(["train", str(recipe), "--model", "b", "--out", str(tmp_path / "out"), *sets]) == 0
    done, total = re.search(r"check and index: ([\d.,]+)/([\d.,]+) MB", capsys.readouterr().err).groups()
    assert float(done) == float(total) > 0


def test_a_few_videos_are_learnt_by_heart(recipe, tmp_path):
    few = ["data.limit.train=20", "training.epochs=150", "training.batch_size=16"]
    sets = [part for each in few for part in ("--set", each)]
    assert main(["train", str(recipe), "--model", "b", "--out", str(tmp_path / "out"), *sets]) == 0
    rows = read_rows(tmp_path / "out" / "logs" / "train.b.csv")
    assert rows[-1].loss < rows[0].loss / 5
