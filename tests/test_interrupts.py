"""Ctrl-C and SIGTERM save what was done and say how to go on."""

import os
import signal
import threading
import time

import pytest

from reeltag import checkpoint, executors
from reeltag.cli import main
from reeltag.interrupts import SAME_SECONDS, Terminated, held
from runs import long_recipe, started


def steps_at(out):
    """Steps in the checkpoint of an unfinished training."""
    (path,) = out.glob("stages/train.a-*/checkpoint.safetensors")
    return checkpoint.load(path).step


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    assert "with the same command run and train go on from their last checkpoint" in said
    assert "Traceback" not in said
    assert steps_at(out) > 0
    assert not list(out.rglob("*.partial"))


def test_a_block_holds_the_first_signal_and_the_second_ends_it():
    with pytest.raises(KeyboardInterrupt), held() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.number == signal.SIGINT
        interrupt.release()
    with pytest.raises(KeyboardInterrupt), held():  # at the block's end
        signal.raise_signal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)
        reached = True
        signal.raise_signal(signal.SIGINT)  # the same, told by someone else
        time.sleep(SAME_SECONDS)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was held")
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_are_left_alone_outside_the_main_thread():
    handlers = []

    def work():
        with held():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_sigterm_ends_a_command_with_143(monkeypatch, tmp_path, capsys):
    def terminated(*arguments):
        raise Terminated

    monkeypatch.setattr(executors, "run", terminated)
    assert main(["run", str(long_recipe(tmp_path)), "--out", str(tmp_path / "out")]) == 143
    assert capsys.readouterr().err.startswith("terminated; with the same command")
