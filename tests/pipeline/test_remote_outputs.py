"""Runs in an object store: the same file, resumed by any machine, after any failure."""

import json
import shutil

import pytest

from conftest import TINY_RUN
from reeltag.cli.main import main
from reeltag.core import remote_files
from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.core.remote_files import list_files, read
from reeltag.pipeline import executor, run_folder
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.run_folder import RemoteOutputs, outputs_at
from reeltag.training.log import read_rows
from runs import KilledError

RECIPE = f"""name = "tiny"
seed = 5
budget_mb = 0.3
{TINY_RUN}
[models.a]
family = "mean"
hidden = 16
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Folder of the same run on this machine."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "tiny.toml").write_text(RECIPE)
    assert main(["run", str(folder / "tiny.toml"), "--out", str(folder / "out")]) == 0
    return folder


def results(folder):
    return (folder / "out/results.json").read_bytes()


def another_machine(monkeypatch, folder):
    """Switch to a machine with an empty cache."""
    monkeypatch.setenv("REELTAG_CACHE", str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_a_run_ends_with_the_same_file_and_any_machine_knows_it_is_done(s3, here, tmp_path, capsys, monkeypatch, rate):
    url, command = f"{s3.root}/run", ["run", str(here / "tiny.toml"), "--out", f"{s3.root}/run"]
    s3.faults.rate = rate
    assert main(command) == 0
    assert bool(sum(s3.faults.injected.values())) == bool(rate)
    assert f"{url}/model.reeltag" in capsys.readouterr().out
    for name in ("model.reeltag", "recipe.json"):
        assert read(f"{url}/{name}") == (here / "out" / name).read_bytes()
    assert (
        json.loads(read(f"{url}/results.json"))["test"] == json.loads((here / "out/results.json").read_text())["test"]
    )
    before = {file.url: file.version for file in list_files(url)}
    another_machine(monkeypatch, tmp_path / "other")
    assert main(command) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert said and all(line.endswith(": done before") for line in said)
    assert {file.url: file.version for file in list_files(url)} == before


@pytest.mark.slow
def test_another_machine_resumes_from_the_last_checkpoint(s3, here, tmp_path, monkeypatch):
    import reeltag.training.trainer
    from reeltag.training.replica import Replica

    step, steps = Replica.train_step, []

    def killed(*arguments, **named):
        steps.append(1)
        if len(steps) == 31:
            raise KilledError
        return step(*arguments, **named)

    monkeypatch.setattr(run_folder, "UPLOAD_SECONDS", 0.05)
    monkeypatch.setitem(reeltag.training.trainer.Trainer.__init__.__kwdefaults__, "checkpoint_seconds", 0.0)
    monkeypatch.setattr(reeltag.training.trainer, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(Replica, "train_step", killed)
    command = ["run", str(here / "tiny.toml"), "--out", f"{s3.root}/run"]
    with pytest.raises(KilledError):
        main(command)
    kept = [file.url for file in list_files(f"{s3.root}/run") if file.url.endswith("checkpoint.safetensors")]
    assert len(kept) == 1
    another_machine(monkeypatch, tmp_path / "other")
    monkeypatch.setattr(Replica, "train_step", lambda *a, **n: steps.append(1) or step(*a, **n))
    assert main(command) == 0
    at_once = read_rows(here / "out/logs/average.a.csv")[-1].step
    assert len(steps) < at_once + 31  # some steps were not repeated
    assert read(f"{s3.root}/run/model.reeltag") == (here / "out/model.reeltag").read_bytes()


def note(job):
    (job.folder / "text").write_text(
        "+".join(["x", *((folder / "text").read_text() for folder in job.inputs.values())])
    )


STAGES = [Stage(name="a", work=note, format=1), Stage(name="b", work=note, format=1, inputs=("a",))]


def test_an_older_state_in_a_working_copy_is_downloaded_again(s3, tmp_path):
    url = f"{s3.root}/run"
    folders = executor.run(STAGES[:1], url, Progress())
    (folders["a"] / "text").write_text("y")
    folders = executor.run(STAGES, url, Progress())
    assert (folders["b"] / "text").read_text() == "x+x"
    (folders["a"] / "text").unlink()
    assert (outputs_at(url).bring(folders["a"].name) / "text").read_text() == "x"
    assert executor.statuses(STAGES, url) == {"a": "done", "b": "done"}
    shutil.rmtree(outputs_at(url).out)
    assert executor.statuses(STAGES, url) == {"a": "done", "b": "done"}


def keep_or_write(job):
    """Resume as a training does that finds its last checkpoint."""
    for number in range(3):
        if not (path := job.folder / f"file-{number}").exists():
            path.write_text(str(number))


KEPT = Stage(name="kept", work=keep_or_write, format=1)


def test_files_that_a_killed_process_did_not_upload_are_uploaded_later(s3, tmp_path, monkeypatch):
    """The files are complete in the working copy, so nothing is recomputed, but they exist nowhere else."""
    url, keep = f"{s3.root}/run", RemoteOutputs._upload

    def killed(*arguments):
        raise KilledError

    monkeypatch.setattr(RemoteOutputs, "_upload", killed)
    with pytest.raises(KilledError):
        executor.run([KEPT], url, Progress())
    monkeypatch.setattr(RemoteOutputs, "_upload", keep)
    folders = executor.run([KEPT], url, Progress())
    here = {path.name: path.read_bytes() for path in folders["kept"].glob("[!.]*")}
    another_machine(monkeypatch, tmp_path / "other")
    brought = outputs_at(url).bring(folders["kept"].name)
    assert brought != folders["kept"]
    assert {path.name: path.read_bytes() for path in brought.glob("[!.]*")} == here and len(here) == 3


def test_a_run_whose_url_was_emptied_is_uploaded_again(s3, tmp_path, monkeypatch):
    url = f"{s3.root}/run"
    executor.run([KEPT], url, Progress())
    filesystem, path = remote_files.file_system(url)
    filesystem.rm(path, recursive=True)
    folders = executor.run([KEPT], url, Progress())
    another_machine(monkeypatch, tmp_path / "other")
    assert (outputs_at(url).bring(folders["kept"].name) / "file-2").read_text() == "2"


def test_a_file_that_differs_from_its_marker_is_one_message(s3, tmp_path, monkeypatch):
    url = f"{s3.root}/run"
    executor.run(STAGES[:1], url, Progress())
    (text,) = [file.url for file in list_files(url) if file.url.endswith("text")]
    s3.put(text.removeprefix(f"{s3.root}/"), b"y")
    another_machine(monkeypatch, tmp_path / "other")
    with pytest.raises(UsageError, match=r"s3://.*/text: is not what stage.json beside it says; remove s3://.*/a-"):
        executor.run(STAGES, url, Progress())


def test_a_damaged_marker_and_a_web_server_are_one_message(s3, tmp_path):
    url = f"{s3.root}/run"
    executor.run(STAGES[:1], url, Progress())
    (marker,) = [file.url for file in list_files(url) if file.url.endswith("stage.json")]
    s3.put(marker.removeprefix(f"{s3.root}/"), b"[]")
    with pytest.raises(UsageError, match=r"s3://.*stage.json: is damaged; remove s3://.*/a-"):
        executor.run(STAGES, url, Progress())
    with pytest.raises(UsageError, match="web servers are only read"):
        executor.run(STAGES, f"{s3.address}/run", Progress())
