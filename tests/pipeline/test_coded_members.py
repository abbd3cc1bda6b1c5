"""Coded members of a run: candidates at several steps, the step by hold-out, fine-tuning, and kills within it."""

import json
import signal

import pytest
import torch

import reeltag
from conftest import TINY_RUN
from reeltag.artifact.file import load_artifact
from reeltag.artifact.quantization.encodings import CodedTensor
from reeltag.core.errors import BudgetError
from reeltag.data.holdout import split_halves
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Manifest, Shards
from reeltag.inference.evaluate import artifact_gap
from reeltag.pipeline.stages.files import split
from reeltag.recipe.load import load_recipe
from reeltag.training import quantization_aware

RECIPE = f"""name = "coded"
budget_mb = 0.05
{TINY_RUN}
[quantization]
%s
[models.a]
family = "netvlad"
clusters = 4
hidden = 16
[models.b]
family = "mean"
"""


def write(folder, quantization, budget="0.05"):
    (folder / "coded.toml").write_text((RECIPE % quantization).replace("0.05", budget, 1))
    return folder / "coded.toml"


def gap_where_chosen(recipe, path):
    """GAP of a model file on the half of the hold-out on which members are chosen."""
    (manifest,) = (path.parent.parent).glob("data.train-*/manifest.safetensors")
    manifest = Manifest.load(manifest)
    _, holdout = split(recipe, manifest)
    choosing = holdout[split_halves(manifest.videos[holdout], recipe.seed)[0]]
    return artifact_gap(load_artifact(path), sequential_batches(Shards(manifest), choosing, batch_size=64))


def members(out, pattern):
    return {path.name: load_artifact(path).members[0].state for path in sorted(out.glob(f"stages/quantize.{pattern}"))}


@pytest.fixture(autouse=True)
def _small_weights_are_coded(monkeypatch):
    monkeypatch.setattr("reeltag.artifact.quantization.sizes.MIN_ELEMENTS", 16)


def test_each_member_is_offered_in_each_step(tmp_path):
    recipe = write(tmp_path, 'encodings = ["uniform-8", "coded"]\nsteps = [1e-3, 1e-2]')
    out = tmp_path / "out"
    reeltag.run(recipe, out=out)
    found = members(out, "a-*/coded@*")
    assert set(found) == {"coded@0.001.reeltag", "coded@0.01.reeltag"}
    fine, coarse = (
        sum(int((value.codes != 0).sum()) for value in state.values() if isinstance(value, CodedTensor))
        for state in (found["coded@0.001.reeltag"], found["coded@0.01.reeltag"])
    )
    assert coarse < fine
    results = json.loads((out / "results.json").read_text())
    for scores in (member["holdout"] for member in results["members"].values()):
        assert set(scores) == {"float32", "uniform-8", "coded@0.001", "coded@0.01"}
        assert scores["coded@0.01"]["bytes"] <= scores["coded@0.001"]["bytes"]
    assert results["frontier_uncoded"] and results["bytes"] <= results["budget"]
    assert "without coded weights" in (out / "report" / "frontier.svg").read_text()


@pytest.mark.slow
def test_auto_takes_a_step_that_loses_little(tmp_path):
    out = tmp_path / "out"
    reeltag.run(write(tmp_path, 'encodings = "auto"\nmax_loss = 0.01'), out=out)
    results = json.loads((out / "results.json").read_text())
    assert {each["encoding"] for each in results["shipped"]} <= {"coded", "float16", "group-4"}
    for scores in (member["holdout"] for member in results["members"].values()):
        assert scores["coded"]["bytes"] < scores["uniform-8"]["bytes"]


@pytest.mark.slow
def test_fine_tuning_is_kept_only_where_it_gains(tmp_path):
    plain, tuned = tmp_path / "plain", tmp_path / "tuned"
    settings = 'encodings = ["coded"]\nsteps = [5e-3]'
    reeltag.run(write(tmp_path, settings), out=plain)
    reeltag.run(write(tmp_path, settings + "\nfine_tune = 12"), out=tuned)
    parsed = load_recipe(tmp_path / "coded.toml")
    for name in ("a", "b"):
        before, after = (next(out.glob(f"stages/quantize.{name}-*/coded@*")) for out in (plain, tuned))
        gain = gap_where_chosen(parsed, after) - gap_where_chosen(parsed, before)
        assert gain > 0 if before.read_bytes() != after.read_bytes() else gain == 0
    assert not list(tuned.glob("stages/quantize.*/*checkpoint*"))


def test_fine_tuning_goes_on_exactly_after_an_interruption(tmp_path, monkeypatch):
    recipe = write(tmp_path, 'encodings = ["coded"]\nsteps = [5e-3]\nfine_tune = 8')
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reeltag.run(recipe, out=whole)
    entropy, calls = quantization_aware.cross_entropy, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return entropy(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(quantization_aware, "cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reeltag.run(recipe, out=killed)
    assert list(killed.glob("stages/quantize.a-*/*checkpoint*"))
    patched_calls = len(calls)
    monkeypatch.setattr(quantization_aware, "cross_entropy", interrupted)
    reeltag.run(recipe, out=killed)
    assert len(calls) == patched_calls + 3 + 8  # the rest of one model, and all of the other
    for name in ("a", "b"):
        one, other = (next(out.glob(f"stages/quantize.{name}-*/coded@*")).read_bytes() for out in (whole, killed))
        assert one == other


def test_a_budget_that_no_step_meets_is_refused_with_the_smallest_that_would(tmp_path):
    recipe = write(tmp_path, 'encodings = ["coded"]\nsteps = [1e-4]', budget="0.003")
    with pytest.raises(BudgetError, match=r"the smallest, . in coded@0.0001, takes 4,\d+ bytes, and the budget"):
        reeltag.run(recipe, out=tmp_path / "out")


def test_an_imported_coded_member_is_not_tuned(tmp_path, monkeypatch):
    settings = 'encodings = ["coded"]\nsteps = [5e-3]'
    reeltag.run(write(tmp_path, settings), out=tmp_path / "first")
    (coded,) = (tmp_path / "first").glob("stages/quantize.b-*/coded@*")
    text = (RECIPE % (settings + "\nfine_tune = 4")).partition("[models.a]")[0] + f'[imported]\nx = "{coded}"\n'
    (tmp_path / "import.toml").write_text(text)
    monkeypatch.setattr("reeltag.pipeline.stages.coded.fine_tune", pytest.fail)
    reeltag.run(tmp_path / "import.toml", out=tmp_path / "second")
    (kept,) = (tmp_path / "second").glob("stages/quantize.x-*/coded@*")
    before, after = (load_artifact(path).members[0].state for path in (coded, kept))
    assert any(isinstance(value, CodedTensor) for value in before.values())
    for name, value in before.items():
        assert type(after[name]) is type(value)
        assert all(torch.equal(after[name].parts()[key], part) for key, part in value.parts().items())


@pytest.mark.slow
def test_fine_tuning_learns_the_mean_of_all_teachers_with_less_dropout(tmp_path, monkeypatch):
    settings = 'encodings = ["coded"]\nsteps = [5e-3]\nfine_tune = 1\nfine_tune_targets = "teachers"'
    recipe = write(tmp_path, settings)
    recipe.write_text(
        recipe.read_text().replace("hidden = 16", "hidden = 16\ndropout = 0.5") + "\n[distillation]\nteachers = 1"
    )
    seen, dropouts = [], []

    def watched(tagger, weights, batches, *, dropout, **others):
        seen.extend(batches(range(1)))
        dropouts.append(dropout)

    monkeypatch.setattr("reeltag.pipeline.stages.coded.fine_tune", watched)
    out = tmp_path / "out"
    reeltag.run(recipe, out=out)
    teachers = [load_artifact(next(out.glob(f"stages/average.{name}-[0-9a-f]*/model.reeltag"))) for name in ("a", "b")]
    for batch in seen:
        with torch.no_grad():
            each = [teacher.members[0].build(teacher.schema)(batch.frames, batch.lengths) for teacher in teachers]
        torch.testing.assert_close(batch.targets, torch.stack(each).mean(0), atol=1e-3, rtol=0)
    assert sorted(set(dropouts)) == [0.0, 0.25]  # at most a quarter, and none
