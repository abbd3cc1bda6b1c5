"""Commands and recipes on shards behind URLs: what they say and leave is what the same shards here would give."""

import os
import subprocess
import sys

import pytest

from conftest import TINY
from reeltag.cli.main import main
from reeltag.core.errors import UsageError
from reeltag.core.remote_files import RemoteFile
from reeltag.data import shard_cache
from reeltag.data.synthetic import write_synthetic
from reeltag.pipeline.plan import plan
from reeltag.recipe.load import load_recipe

RECIPE = """name = "tiny"
budget_mb = 0.3
[data]
root = "{root}"
train = ["train-*"]
test = ["test-*"]
label_names = "labels.csv"
shuffle_window = 2
holdout = {{ shards = 1 }}
[data.schema]
features = [{{ name = "rgb", width = 6 }}, {{ name = "audio", width = 2 }}]
classes = 8
max_frames = {max_frames}
[training]
epochs = 3
batch_size = 8
frames = 4
learning_rate = 5e-3
device = "cpu"
[averaging]
epochs = 1
time_constant = 5
[models.a]
family = "mean"
hidden = 8
"""
SETTINGS = TINY.model_copy(update={"train_videos": 60, "shards": 6})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six shards of each split, and names of the classes."""
    folder = tmp_path_factory.mktemp("shards")
    write_synthetic(folder, SETTINGS)
    (folder / "labels.csv").write_text("index,name\n" + "".join(f"{n},class {n}\n" for n in range(8)))
    return folder


def write(path, root):
    path.write_text(RECIPE.format(root=root, max_frames=SETTINGS.record_schema.max_frames))
    return str(path)


def said(capsys, *arguments):
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_a_run_gives_the_bytes_of_the_same_run_here(s3, folder, tmp_path, capsys, monkeypatch):
    s3.put_folder(folder)
    largest = max(path.stat().st_size for path in folder.glob("train-*"))
    s3.faults.rate = 0.05
    cache = ["--set", f"data.cache_gb={4.5 * largest / 1e9}"]
    monkeypatch.setenv("REELTAG_CACHE_GB", "1")  # what the recipe says counts
    there = write(tmp_path / "there.toml", s3.root)
    here = write(tmp_path / "here.toml", folder)
    said(capsys, "run", here, "--out", tmp_path / "here", "--set", "data.order=by-shard")
    said(capsys, "run", there, "--out", tmp_path / "there", *cache)
    models = [(tmp_path / place / "model.reeltag").read_bytes() for place in ("here", "there")]
    assert models[0] == models[1]
    assert s3.faults.injected
    assert shard_cache.size_bytes() <= 4.5 * largest
    s3.faults.rate, held = 0, len(s3.faults.requests)
    said(capsys, "run", there, "--out", tmp_path / "there", *cache)
    assert not [path for _, path, span in s3.faults.requests[held:] if span and "tfrecord" in path]
    said(capsys, "run", here, "--out", tmp_path / "shuffled")
    assert (tmp_path / "shuffled" / "model.reeltag").read_bytes() != models[0]


def test_commands_say_the_same(store, folder, tiny_model, tmp_path, capsys):
    root = store.put_folder(folder)
    store.faults.rate = 0.05
    recipe = write(tmp_path / "r.toml", folder)
    for command in (
        ["predict", str(tiny_model), "SHARDS"],
        ["evaluate", str(tiny_model), "SHARDS", "--json"],
        ["data", "verify", "SHARDS", "--schema", recipe],
        ["data", "inspect", "SHARDS"],
    ):
        here, there = ([each.replace("SHARDS", f"{place}/test-*") for each in command] for place in (folder, root))
        assert said(capsys, *there).replace(root, str(folder)) == said(capsys, *here)
    for place, out in ((folder, "here.csv"), (root, "there.csv")):
        said(capsys, "predict", tiny_model, f"{place}/test-*", "--out", tmp_path / out)
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_workers_of_a_prediction_fetch_too(web, folder, tiny_model, tmp_path, capsys):
    root = web.put_folder(folder)
    for name, workers in (("one.jsonl", 1), ("two.jsonl", 2)):
        said(capsys, "predict", tiny_model, f"{root}/test-*", "--out", tmp_path / name, "--workers", workers)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_the_order_decides_a_training_and_where_the_shards_lie_does_not(web, folder, tmp_path):
    here, there = write(tmp_path / "here.toml", folder), write(tmp_path / "there.toml", web.put_folder(folder))

    def decisive(path, *overrides):
        recipe = load_recipe(tmp_path / path, overrides)
        (training,) = (dict(stage.parameters) for stage in plan(recipe) if stage.name == "train.a")
        return recipe.fingerprint, training

    plain = decisive(here)
    assert "shuffle_window" not in plain[1]
    assert decisive(here, "data.shuffle_window=5") == plain == decisive(here, "data.cache_gb=9")
    assert decisive(here, "data.order=by-shard") == decisive(there) != plain
    assert decisive(there, "data.shuffle_window=3") != decisive(there)
    assert decisive(there, "data.order=shuffled") == plain


def test_a_cache_too_small_for_the_order_is_one_message_before_anything_is_fetched(web, folder, tmp_path, monkeypatch):
    write(tmp_path / "r.toml", web.put_folder(folder))
    sizes = sorted(path.stat().st_size for path in folder.glob("train-*"))
    needed = sum(sizes[-4:])

    def planned(size, *overrides):
        return plan(load_recipe(tmp_path / "r.toml", [f"data.cache_gb={size / 1e9}", *overrides]))

    assert planned(needed)
    with pytest.raises(
        UsageError, match=r"data.train: the order needs two windows of 2 shards .*lower data.shuffle_window"
    ):
        planned(needed - 1)
    assert planned(needed - 1, "data.shuffle_window=1")
    with pytest.raises(UsageError, match=r"the order needs all shards at hand, .* or take data.order = \"by-shard\""):
        planned(sum(sizes) - 1, "data.order=shuffled")
    monkeypatch.setattr("reeltag.pipeline.stages.data.free_bytes", lambda folder: 10)
    with pytest.raises(UsageError, match="there is room for 10 bytes; make room, or set REELTAG_CACHE"):
        planned(needed)
    assert not [path for path, span in web.faults.reads() if span and "tfrecord" in path]


def test_a_plan_without_the_network_can_be_looked_at(web, folder, tmp_path, capsys):
    recipe = write(tmp_path / "r.toml", web.put_folder(folder))
    web.stop()
    assert "cannot be reached" in said(capsys, "run", recipe, "--dry-run", "--out", tmp_path / "out")
    assert main(["run", recipe, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {web.root}/train-*: cannot be reached")
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_says_so(store, capsys):
    store.put("a.tfrecord", b"x")
    assert main(["data", "inspect", f"{store.root}/b-*"]) == 2
    assert f"{store.root}/b-*: no file matches" in capsys.readouterr().err


def test_a_shard_that_changes_between_runs_is_indexed_anew(s3, folder, tmp_path, capsys):
    s3.put_folder(folder)
    recipe = write(tmp_path / "r.toml", s3.root)
    command = ["train", recipe, "--out", str(tmp_path / "out"), "--set", "data.holdout={ fraction = 0.2 }"]
    said(capsys, *command)
    content = (folder / "train-00001-of-00006.tfrecord").read_bytes()
    s3.put("train-00001-of-00006.tfrecord", (folder / "train-00002-of-00006.tfrecord").read_bytes())
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{s3.root}/train-00001-of-00006.tfrecord changed" in error
    assert "occurs already in" in error
    s3.put("train-00001-of-00006.tfrecord", content)
    assert "train.a: done before" in (main(command), capsys.readouterr().err)[1]


def test_a_killed_run_leaves_nothing_in_the_way(s3, folder, tmp_path, capsys, monkeypatch):
    s3.put_folder(folder)
    write(tmp_path / "r.toml", s3.root)
    shard_cache.folder().mkdir(parents=True)
    (shard_cache.folder() / f"{'0' * 64}-2000.partial").write_bytes(b"of a killed process")
    code = "import os, sys; from reeltag.data import shard_cache\n"
    code += "from reeltag.core.storage import find_files\n"
    code += "shard_cache.fetch(find_files([sys.argv[1]])[0], lambda size: size and os.kill(os.getpid(), 9))"
    url = f"{s3.root}/test-00000-of-00006.tfrecord"
    assert subprocess.run([sys.executable, "-c", code, url], env=os.environ).returncode == -9
    assert len(list(shard_cache.folder().glob("*.partial"))) == 2
    largest = max(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setenv("REELTAG_CACHE_GB", str(1.2 * largest / 1e9))
    said(capsys, "data", "verify", f"{s3.root}/test-*", "--schema", tmp_path / "r.toml")
    assert not list(shard_cache.folder().glob("*.partial"))


def test_a_url_is_no_path_of_a_recipe(tmp_path):
    write(tmp_path / "r.toml", "s3://bucket/folder")
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.data.root == "s3://bucket/folder"
    assert recipe.dump()["data"]["root"] == "s3://bucket/folder"
    assert RemoteFile("https://x.org/a/b.tfrecord?key=1", 1, None).name == "b.tfrecord"
