"""Two processes do not work in one folder, and a run does not begin where its disk would fill."""

import os
import re
import signal
import subprocess
import sys

import pytest

from conftest import TINY
from reeltag.cli.main import main
from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.core.storage import LOCK, locked
from reeltag.pipeline import executor
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.plan import plan
from reeltag.pipeline.run_folder import outputs_at
from reeltag.pipeline.stages.data import with_videos
from reeltag.recipe.load import load_recipe
from runs import COMMAND, long_recipe, started


def test_a_second_run_in_one_folder_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path, capsys):
    recipe = long_recipe(tmp_path)
    out = tmp_path / "out"
    with started(recipe, out, "training.workers=2") as process:
        assert main(["run", str(recipe), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert f"{out}: is in use by process {process.pid} on " in said
        assert re.search(r"is in use by process \d+ on .*, since [\d: -]+; wait until it ends", said)
        process.kill()
        process.wait()
        with outputs_at(out).claimed():  # at once, though its loaders may live on for a while
            assert (out / LOCK).exists()


def test_a_process_that_a_killed_one_started_does_not_hold_its_lock(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from reeltag.core.storage import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if os.fork(): print('ready', flush=True)\n"
        "    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline()
            with pytest.raises(UsageError, match=f"process {process.pid} on"), locked(tmp_path):
                pass
            process.kill()
            process.wait()
            with locked(tmp_path):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_predictions_into_one_file_are_refused(tiny_model, tiny_shards, tmp_path):
    out, parts = tmp_path / "p.csv", tmp_path / "p.csv.parts"
    parts.mkdir()
    command = [*COMMAND, "predict", str(tiny_model), str(tiny_shards / "train-*"), "--out", str(out)]
    with locked(parts):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"{parts}: is in use by process {os.getpid()} on " in done.stderr
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.exists()
    assert not parts.exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UsageError, match="cannot be locked"), locked(tmp_path):
        pass


def test_a_run_that_would_fill_the_disk_does_not_begin(tmp_path, monkeypatch, capsys):
    recipe = long_recipe(tmp_path)
    monkeypatch.setattr(executor, "free_bytes", lambda path: 100_000)
    out = tmp_path / "out"
    assert main(["run", str(recipe), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"the run takes about 0\.\d\d MB more, and 0\.10 MB are free there; make room", said)
    assert not list(out.glob("stages/*"))


def test_room_is_asked_for_what_is_missing_alone(tmp_path, monkeypatch):
    stages = [Stage(name=name, work=lambda job: None, format=1, bytes=size) for name, size in (("a", 1000), ("b", 500))]
    monkeypatch.setattr(executor, "free_bytes", lambda path: 2500)
    executor.run(stages, tmp_path, Progress())
    monkeypatch.setattr(executor, "free_bytes", lambda path: 599)
    executor.run(stages, tmp_path, Progress())
    with pytest.raises(UsageError, match="600 bytes more, and 599 bytes are free"):
        executor.run([*stages, Stage(name="c", work=lambda job: None, format=1, bytes=300)], tmp_path, Progress())


def test_estimates_of_disk_are_near_what_a_run_leaves(tmp_path):
    stages = plan(load_recipe(long_recipe(tmp_path), ["training.epochs=1", "models.a.hidden=3000"]))
    folders = executor.run(stages, tmp_path / "out", Progress())
    checked = set()
    for stage in stages:
        written = sum(file.stat().st_size for file in folders[stage.name].rglob("*"))
        written *= 2 if stage.name == "pack" else 1  # the file is published too
        if max(written, stage.bytes) > 50_000:
            assert 0.5 < written / stage.bytes < 1.3, stage.name
            checked.add(stage.name)
    assert checked == {"synthetic", "train.a", "average.a", "quantize.a", "pack", "test.file", "report"}


def test_videos_are_estimated_by_the_first_shard(tiny_shards, tmp_path):
    features = ", ".join(f"{{name = '{f.name}', width = {f.width}}}" for f in TINY.record_schema.features)
    (tmp_path / "tiny.toml").write_text(
        f"name = 'tiny'\nbudget_mb = 1\n[models.a]\nfamily = 'mean'\n[data]\nroot = '{tiny_shards}'\n"
        "train = ['train-*']\ntest = ['test-*']\n"
        f"schema = {{features = [{features}], classes = 8, max_frames = 9}}\n"
    )
    recipe = load_recipe(tmp_path / "tiny.toml", [])
    assert recipe.data.expected_videos is None
    assert with_videos(recipe).data.expected_videos == pytest.approx(TINY.train_videos, rel=0.2)
    assert with_videos(recipe).fingerprint == recipe.fingerprint
