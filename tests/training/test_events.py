"""Event files say what the logs say, as TensorBoard itself reads them."""

import sys

import numpy as np
import pytest

from reeltag.cli import tensorboard as tensorboard_command
from reeltag.cli.main import main
from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.training.log import LOG, TrainingLog, read_rows
from reeltag.training.tensorboard import EventFiles

pytest.importorskip("tensorboard")
STAGES = ("train.a-0123", "average.a-4567")


@pytest.fixture
def run(tmp_path):
    """A run's folder with two logs."""
    log(tmp_path, STAGES[0], 5)
    log(tmp_path, STAGES[1], 3)
    return tmp_path


def log(run, stage, rows):
    rng, found = np.random.default_rng(0), TrainingLog()
    for step in range(1, rows + 1):
        found.add(step, step / 7, *rng.random(2).tolist(), every=1, gap=0.25 if step == 2 else None, ends=False)
    found.write(run / "stages" / stage / LOG)
    return found


def scalars(run, stage):
    """Return the steps and values of each tag as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "logs" / "tensorboard" / stage)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(rows):
    columns = {tag: [(row.step, getattr(row, tag)) for row in rows] for tag in ("epoch", "loss", "learning_rate")}
    return columns | {"holdout_gap": [(2, 0.25)]}


def same(found, rows):
    assert found.keys() == expected(rows).keys()
    for tag, pairs in expected(rows).items():
        np.testing.assert_allclose(found[tag], pairs, rtol=1e-6)


def test_a_log_that_was_written_is_read_back(tmp_path):
    found = log(tmp_path, "train.a-0", 4)
    for row, again in zip(found.rows, read_rows(tmp_path / "stages" / "train.a-0" / LOG), strict=True):
        assert again[0] == row[0]
        assert again[4] == row[4]
        np.testing.assert_allclose(again[1:4], row[1:4], rtol=1e-6)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="needs a header with the columns 'step'"):
        read_rows(tmp_path / "other.csv")


def test_a_log_of_an_earlier_version_is_one_message_with_the_next_step(run, capsys):
    path = run / "stages" / STAGES[0] / LOG
    path.write_text(path.read_text().replace("learning_rate", "rate", 1))
    assert main(["tensorboard", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: an earlier version of reeltag wrote this log, with a column rate" in line
    assert "rename it in the first line" in line
    path.write_text(path.read_text().replace("rate", "learning_rate", 1))
    assert main(["tensorboard", str(run)]) == 0


def test_every_training_has_its_curves_and_the_command_twice_has_them_once(run, capsys):
    for _ in range(2):
        assert main(["tensorboard", str(run)]) == 0
        assert "8 rows" in capsys.readouterr().out
    for stage, rows in zip(STAGES, (5, 3), strict=True):
        same(scalars(run, stage), log(run, stage, rows).rows)


def test_rows_that_come_later_are_added(run, monkeypatch, capsys):
    monkeypatch.setattr(tensorboard_command, "FOLLOW_SECONDS", 0.05)
    real, looks = EventFiles.update, []

    def update(files):
        looks.append(real(files))
        if len(looks) == 2:
            log(run, STAGES[0], 9)
        if len(looks) == 4:
            raise KeyboardInterrupt
        return looks[-1]

    monkeypatch.setattr(EventFiles, "update", update)
    assert main(["tensorboard", str(run), "--follow"]) == 0  # Ctrl-C is its end
    assert looks == [8, 0, 4, 0]
    same(scalars(run, STAGES[0]), log(run, STAGES[0], 9).rows)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["tensorboard", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: holds no reeltag run" in capsys.readouterr().err


def test_without_tensorboard_the_extra_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["tensorboard", str(run)]) == 2
    assert f"; {install_command('tensorboard')}" in capsys.readouterr().err
