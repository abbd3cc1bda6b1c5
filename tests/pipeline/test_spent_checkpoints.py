"""A run keeps no checkpoint that no later stage reads; it still resumes, and a changed averaging still works."""

import pytest

from conftest import TINY_RUN
from reeltag.cli.main import main
from reeltag.core.progress import Progress
from reeltag.core.remote_files import list_files, read
from reeltag.pipeline import executor
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.plan import plan
from reeltag.pipeline.run_folder import Outputs
from reeltag.recipe.load import load_recipe
from reeltag.training.replica import Replica
from runs import KilledError

RECIPE = f'name = "tiny"\nseed = 5\nbudget_mb = 0.3\n{TINY_RUN}[models.a]\nfamily = "mean"\nhidden = 16\n'
AVERAGING = "[averaging]\nepochs = 1\ntime_constant = 5\n"
CHANGED = ["--set", "averaging.time_constant=7"]
CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def steps(monkeypatch):
    """Training steps taken, as a list that grows."""
    taken, step = [], Replica.train_step
    monkeypatch.setattr(Replica, "train_step", lambda *a, **n: taken.append(1) or step(*a, **n))
    return taken


def trained(recipe, out, *options):
    assert main(["train", str(recipe), "--out", str(out), *options]) == 0
    return (out / "a.reeltag").read_bytes()


def files(out, stage):
    (folder,) = out.glob(f"stages/{stage}-*")
    return {path.name for path in folder.iterdir()}


def test_finished_stages_keep_models_and_logs_alone(recipe, tmp_path):
    trained(recipe, tmp_path / "out")
    assert files(tmp_path / "out", "train.a") == {"model.reeltag", "log.csv", "stage.json"}
    assert files(tmp_path / "out", "average.a") == {"model.reeltag", "log.csv", "scores.json", "stage.json"}


def test_a_checkpoint_is_there_until_the_averaging_that_reads_it_is_finished(recipe, tmp_path, monkeypatch):
    dropped, drop = [], Outputs.drop

    def watched(self, stage, name):
        averaged = [path.parent.name for path in self.out.glob("stages/average.a-*/stage.json")]
        dropped.append((stage.partition("-")[0], len(averaged)))
        drop(self, stage, name)

    monkeypatch.setattr(Outputs, "drop", watched)
    trained(recipe, tmp_path / "out")
    assert dropped == [("train.a", 1), ("average.a", 1)]


def test_a_run_that_is_repeated_trains_nothing_and_changes_no_file(recipe, tmp_path, steps):
    out = tmp_path / "out"
    trained(recipe, out)
    before, taken = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/*")}, len(steps)
    trained(recipe, out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("stages/*/*")} == before
    assert len(steps) == taken


def test_a_run_killed_before_the_removal_removes_later_and_trains_nothing(recipe, tmp_path, monkeypatch, steps):
    whole, out = trained(recipe, tmp_path / "whole"), tmp_path / "out"

    def killed(*arguments):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "drop", killed)
        with pytest.raises(KilledError):
            trained(recipe, out)
    assert CHECKPOINT in files(out, "train.a") & files(out, "average.a")
    taken = len(steps)
    assert trained(recipe, out) == whole
    assert len(steps) == taken
    assert CHECKPOINT not in files(out, "train.a") | files(out, "average.a")


def test_a_changed_averaging_trains_again_to_the_same_bytes_and_says_why(recipe, tmp_path, capsys, steps):
    out = tmp_path / "out"
    whole, other = trained(recipe, tmp_path / "whole", *CHANGED), trained(recipe, out)
    stages = plan(load_recipe(recipe, "averaging.time_constant=7"))
    assert executor.statuses(stages, out)["train.a"] == "to do"
    capsys.readouterr()
    assert trained(recipe, out, *CHANGED) == whole != other
    assert (
        "train.a: is computed again, because its checkpoint was removed once nothing needed it, and average.a goes"
        in (capsys.readouterr().err)
    )
    taken = len(steps)
    assert trained(recipe, out) == other
    assert trained(recipe, out, *CHANGED) == whole
    assert len(steps) == taken


def test_averaging_that_is_added_later_is_that_of_a_new_run(recipe, tmp_path):
    whole = trained(recipe, tmp_path / "whole")
    plain = tmp_path / "plain.toml"
    plain.write_text(RECIPE.replace(AVERAGING, ""))
    trained(plain, tmp_path / "out")
    assert files(tmp_path / "out", "train.a") == {"model.reeltag", "log.csv", "stage.json"}
    assert trained(recipe, tmp_path / "out") == whole


def test_a_training_that_is_killed_while_it_is_repeated_ends_with_the_same_bytes(recipe, tmp_path, monkeypatch):
    """The marker is removed first, so an early checkpoint is never taken for the last."""
    whole, out = trained(recipe, tmp_path / "whole", *CHANGED), tmp_path / "out"
    trained(recipe, out)
    taken, step = [], Replica.train_step

    def killed(*arguments, **named):
        taken.append(1)
        if len(taken) == 10:
            raise KilledError
        return step(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setitem(trainer_defaults(), "checkpoint_seconds", 0.0)
        patch.setattr(Replica, "train_step", killed)
        with pytest.raises(KilledError):
            trained(recipe, out, *CHANGED)
    assert "stage.json" not in files(out, "train.a")
    assert trained(recipe, out, *CHANGED) == whole


def trainer_defaults():
    from reeltag.training.trainer import Trainer

    return Trainer.__init__.__kwdefaults__


@pytest.mark.slow
def test_a_run_behind_a_url_keeps_none_either_and_another_machine_averages_anew(s3, recipe, tmp_path, monkeypatch):
    whole, url = trained(recipe, tmp_path / "whole", *CHANGED), f"{s3.root}/run"
    command = ["train", str(recipe), "--out", url]
    assert main(command) == 0
    before = {file.url: file.version for file in list_files(url)}
    assert not any(CHECKPOINT in each for each in before)
    assert any(each.endswith("model.reeltag") for each in before)
    monkeypatch.setenv("REELTAG_CACHE", str(tmp_path / "other"))
    assert main(command) == 0
    assert {file.url: file.version for file in list_files(url)} == before
    assert main([*command, *CHANGED]) == 0
    assert read(f"{url}/a.reeltag") == whole
    assert not any(CHECKPOINT in file.url for file in list_files(url))


def test_a_plan_asks_for_what_is_kept_and_for_one_training_at_a_time():
    def stage(name, size, checkpoint=0, continues=""):
        return Stage(
            name=name, work=lambda job: None, format=1, bytes=size, checkpoint="c" if checkpoint else "",
            checkpoint_bytes=checkpoint, continues=continues,
        )  # fmt: skip

    stages = [stage("data", 5)]
    for name in "ab":
        stages += [stage(f"train.{name}", 10, 30), stage(f"average.{name}", 10, 40, f"train.{name}")]
    to_do = dict.fromkeys((each.name for each in stages), "to do")
    # Before average.b: 5 + 10 + 10 of models, and train.b's 10 + 30; then its model, its checkpoint, and that again.
    assert executor._bytes_to_do(stages, to_do) == (5 + 10 + 10) + (10 + 30) + (10 + 40 + 40)
    # In any order, no checkpoint counts as removed, and the largest twice.
    assert executor._bytes_to_do(stages, to_do, side_by_side=True) == 5 + 2 * (10 + 30 + 10 + 40) + 40
    assert executor._bytes_to_do(stages, dict.fromkeys(to_do, "done")) == 0
    ended = to_do | {"data": "done", "train.a": "done", "average.a": "unfinished"}
    assert executor._bytes_to_do(stages[:3], ended) == 40


def test_the_published_recipe_takes_70_gb_of_disk():
    stages = plan(load_recipe("yt8m-2018"), without_data=True)
    assert executor._bytes_to_do(stages, {each.name: "to do" for each in stages}) < 70e9


def test_a_stage_without_a_checkpoint_has_nothing_removed(tmp_path):
    def work(job):
        (job.folder / CHECKPOINT).write_bytes(b"not a checkpoint of this stage")

    folder = executor.run([Stage(name="a", work=work, format=1)], tmp_path, Progress())["a"]
    assert (folder / CHECKPOINT).exists()
