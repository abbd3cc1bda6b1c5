"""Ctrl-C and SIGTERM save what was done and say how to go on."""

import os
import signal
import subprocess
import threading
import time

import pytest

from reeltag.cli.main import main
from reeltag.core.distributed.process_pool import without_interrupts
from reeltag.core.interrupts import REPEAT_SECONDS, Terminated, TimeLimitReached, deadline, hold_signals
from reeltag.pipeline import executor
from reeltag.training import checkpoint
from runs import COMMAND, long_recipe, started


def steps_at(out):
    """Steps in the checkpoint of an unfinished training."""
    (path,) = out.glob("stages/train.a-*/checkpoint.safetensors")
    return checkpoint.load(path).step


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_last_step_and_says_how_to_go_on(tmp_path, number, code):
    recipe, out = long_recipe(tmp_path), tmp_path / "out"
    with started(recipe, out, "training.workers=1") as process:
        time.sleep(1.5)  # some steps; a checkpoint is due only after a minute
        sent = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal sends it, to the loader's process too
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert time.monotonic() - sent < 30
    assert "saving" in said
    assert "the same command resumes from its last checkpoint" in said
    assert "Traceback" not in said
    assert steps_at(out) > 0
    assert not list(out.rglob("*.partial"))


def test_a_block_holds_the_first_signal_and_the_second_ends_it():
    with pytest.raises(KeyboardInterrupt), hold_signals() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.number == signal.SIGINT
        interrupt.release()
    with pytest.raises(KeyboardInterrupt), hold_signals():  # at the block's end
        signal.raise_signal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), hold_signals():
        signal.raise_signal(signal.SIGINT)
        reached = True
        signal.raise_signal(signal.SIGINT)  # the same, told by someone else
        time.sleep(REPEAT_SECONDS)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was held")
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_in_another_leaves_the_signal_to_it():
    reached = False
    with pytest.raises(KeyboardInterrupt), hold_signals() as outer:
        with hold_signals() as inner:
            signal.raise_signal(signal.SIGINT)
            assert (inner.number, outer.number) == (signal.SIGINT, 0)
        reached = outer.number == signal.SIGINT
    assert reached


def test_ctrl_c_waits_for_a_process_to_start_whichever_thread_it_comes_to():
    stop, reached = threading.Event(), False
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt), without_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            reached = True
    finally:
        stop.set()
        thread.join()
    assert reached


def test_signals_are_left_alone_outside_the_main_thread():
    handlers = []

    def work():
        with hold_signals():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_sigterm_ends_a_command_with_143(monkeypatch, tmp_path, capsys):
    def terminated(*arguments):
        raise Terminated

    monkeypatch.setattr(executor, "run", terminated)
    assert main(["run", str(long_recipe(tmp_path)), "--out", str(tmp_path / "out")]) == 143
    assert capsys.readouterr().err == "terminated; the same command resumes from its last checkpoint\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["predict", "m", "s", "--out", "p.csv"], "; the same command resumes after the shards that are finished"),
        (["predict", "m", "s"], ""),
        (
            ["data", "download", "yt8m", "--split", "test", "--out", "d"],
            "; the same command resumes after the bytes that are downloaded",
        ),
        (["extract", "v", "--out", "d"], "; the same command resumes after the videos that are finished"),
        (["inspect", "m"], ""),
    ],
)
def test_each_command_says_whether_it_goes_on(monkeypatch, capsys, command, said):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("reeltag.cli.main.app", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err == f"interrupted{said}\n"


@pytest.mark.slow
def test_the_end_of_the_time_saves_and_the_same_command_goes_on(tmp_path, capsys):
    recipe, out, steps = long_recipe(tmp_path), tmp_path / "out", []
    for _ in range(2):
        assert main(["train", str(recipe), "--out", str(out), "--max-time", "2s", "--quiet"]) == 75
        said = capsys.readouterr().err
        assert "out of time; the same command resumes" in said
        assert "loss" not in said  # it is quiet
        steps.append(steps_at(out))
    assert 0 < steps[0] < steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--devices", "cpu"), ("--set", "training.devices=2")], ids=str)
def test_the_end_of_the_time_is_told_to_the_processes_that_train(tmp_path, options):
    recipe, out = long_recipe(tmp_path), tmp_path / "out"
    command = [*COMMAND, "train", str(recipe), "--out", str(out), "--max-time", "1h", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "loss" not in (line := process.stderr.readline()):
            assert line, "it ended before it trained"
        process.send_signal(signal.SIGALRM)  # what the timer does
        said = process.stderr.read()
    assert process.returncode == 75, said
    assert "out of time; the same command resumes" in said
    assert "Traceback" not in said
    assert steps_at(out) > 0


def test_a_deadline_waits_for_the_safe_point_and_is_no_second_signal():
    with pytest.raises(TimeLimitReached), deadline(0.05), hold_signals() as interrupt:
        while not interrupt.number:
            time.sleep(0.01)
        interrupt.release()
    with pytest.raises(KeyboardInterrupt) as ended, deadline(REPEAT_SECONDS + 0.1), hold_signals() as interrupt:
        signal.raise_signal(signal.SIGINT)
        time.sleep(REPEAT_SECONDS + 0.3)  # it saves
        interrupt.release()
    assert type(ended.value) is KeyboardInterrupt
    with deadline(None), deadline(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@pytest.mark.parametrize("given", ["0s", "-1m", "soon"])
def test_a_time_that_is_none_is_refused_and_nothing_is_made(tmp_path, given, capsys):
    out = tmp_path / "out"
    assert main(["train", str(long_recipe(tmp_path)), "--out", str(out), f"--max-time={given}"]) == 2
    assert "max-time" in capsys.readouterr().err.lower()
    assert not out.exists()
