"""Formats: another version of reeltag recomputes nothing; a run that another version made is refused unchanged."""

import json
import sys

import numpy as np
import pytest

import reeltag
from conftest import TINY_RUN
from reeltag.cli.main import main
from reeltag.core import version
from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.inference.shard_tagger import predict_to_file
from reeltag.pipeline import executor
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.plan import plan
from reeltag.pipeline.run_folder import FORMAT, RUN_FORMAT
from reeltag.recipe.load import load_recipe

RECIPE = f"""
name = "tiny"
seed = 5
budget_mb = 0.3
{TINY_RUN}
[models.a]
family = "mean"
bn_decay = 0.9
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(RECIPE)
    reeltag.run(folder / "tiny.toml", out=folder / "out")
    return folder


def set_version(monkeypatch, text):
    """Give every loaded module that knows the version another one."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "reeltag"]
    for module in modules:
        if hasattr(module, "__version__"):
            monkeypatch.setattr(module, "__version__", text)
    assert version.__version__ == reeltag.__version__ == text


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_version_runs_and_trains_nothing_again(finished, monkeypatch):
    set_version(monkeypatch, "99.0.0")
    out, recipe = finished / "out", load_recipe(finished / "tiny.toml")
    assert set(executor.statuses(plan(recipe), out).values()) == {"done"}
    before = contents(out / "stages")
    reeltag.run(recipe, out=out)
    reeltag.train_models(recipe, out=out)
    assert contents(out / "stages") == before


def test_another_version_predicts_no_shard_again(finished, tmp_path, monkeypatch):
    (synthetic,) = (finished / "out" / "stages").glob("synthetic-*")
    shards, out = str(synthetic / "test-*"), tmp_path / "a.csv"

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # keeps the parts, as a process that was killed before it joined them
        patched.setattr("reeltag.inference.formats.table.Text.join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(finished / "out" / "model.reeltag", shards, out)
    with monkeypatch.context() as patched:
        set_version(patched, "99.0.0")
        patched.setattr("reeltag.inference.shard_tagger.predict_batches", interrupt)
        predict_to_file(finished / "out" / "model.reeltag", shards, out)
    predict_to_file(finished / "out" / "model.reeltag", shards, tmp_path / "b.csv")
    assert out.read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_another_format_number_of_a_stage_runs_it_and_what_follows_again(tmp_path):
    computed = []

    def stages(number):
        return [
            Stage(name=name, work=lambda job: computed.append(job.folder), format=format_, inputs=inputs)
            for name, format_, inputs in (("a", 1, ()), ("b", number, ("a",)), ("c", 1, ("b",)))
        ]

    names = [executor.run(stages(number), tmp_path, Progress()) for number in (1, 1, 2)]
    assert len(computed) == 5
    assert names[0] == names[1]
    assert [name for name in "abc" if names[0][name] != names[2][name]] == ["b", "c"]


@pytest.fixture(params=["finished", "unfinished"])
def old_run(request, tmp_path):
    """A run as versions before formats made it: without the file that has the format number."""
    out = tmp_path / "old"
    (out / "logs").mkdir(parents=True)
    (out / "recipe.json").write_text(json.dumps({"name": "tiny", "training": {"rate": 1e-3}}))
    for stage in ("data.train-0123456789ab", "train.a-ba9876543210"):
        folder = out / "stages" / stage
        folder.mkdir(parents=True)
        (folder / "checkpoint.safetensors").write_bytes(b"weights")
        (folder / ".partial-1").write_bytes(b"of a killed process")
        if request.param == "finished":
            (folder / "stage.json").write_text(json.dumps({"digest": stage, "parameters": {}, "seconds": 1.0}))
    (out / "stages" / "train.a-ba9876543210" / "log.csv").write_text("step,epoch,loss,rate,holdout_gap\n1,1,2,3,\n")
    return out


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["train"]])
def test_a_run_of_an_earlier_version_is_refused_and_left_alone(finished, old_run, command, capsys):
    before = contents(old_run)
    assert main([*command, str(finished / "tiny.toml"), "--out", str(old_run)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {old_run}: an earlier version of reeltag made this run (format 1, ")
    assert error.endswith("choose another --out, or continue with that version")
    assert contents(old_run) == before


def test_a_run_of_a_later_version_is_refused(finished, tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / FORMAT).write_text(json.dumps({"format": RUN_FORMAT + 1}))
    with pytest.raises(UsageError, match=r": a later version of reeltag made this run \(format 3, .* has format 2\)"):
        reeltag.run(finished / "tiny.toml", out=tmp_path)
    assert not list((tmp_path / "stages").iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": null}'])
def test_a_damaged_format_is_refused_with_what_to_write(finished, tmp_path, content):
    (tmp_path / "stages").mkdir()
    (tmp_path / FORMAT).write_text(content)
    with pytest.raises(UsageError, match=r'format.json: is damaged; write \{"format": N\} into it'):
        reeltag.run(finished / "tiny.toml", out=tmp_path)


def test_a_loaded_recipe_runs_as_its_file_does(finished, tmp_path):
    recipe = load_recipe(finished / "tiny.toml", ["training.epochs=0.5"])
    files = reeltag.train_models(recipe, "a", out=tmp_path / "loaded")
    again = reeltag.train_models(finished / "tiny.toml", "a", out=tmp_path / "file", overrides="training.epochs=0.5")
    first, second = (reeltag.load(each["a"]).model.state_dict() for each in (files, again))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    with pytest.raises(UsageError, match="overrides: apply only while a recipe is loaded; give them to load_recipe"):
        reeltag.run(recipe, out=tmp_path / "loaded", overrides="training.epochs=2")
