"""Progress of long work on a terminal, elsewhere, and when quiet."""

import os
import re
import resource
import sys
import time
from contextlib import suppress

import pytest
import torch

from reeltag.cli.main import main
from reeltag.core import progress
from reeltag.core.progress import PlainProgress, Progress, Task, default_progress


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def test_a_task_tells_the_most_memory_of_the_process_so_far():
    block = torch.ones(75_000_000)  # 0.3 GB
    before = peak()
    del block
    (told,) = re.findall(r", memory (\d+\.\d) GB", str(Task("t", 10, "videos")))
    assert before - 0.05 <= float(told) <= peak() + 0.05
    assert "GPU" not in str(Task("t", 10, "videos"))


def test_quiet_progress_says_nothing_here_and_elsewhere(capsys):
    quiet = default_progress(quiet=True)
    for each in (quiet, quiet.labelled("stage"), Progress()):
        with each.task("t", 1, "videos") as task:
            task.advance(1, waited=0.1, note="loss 1")
        each.say("line")
    assert capsys.readouterr() == ("", "")
    PlainProgress().labelled("stage").say("line")
    assert capsys.readouterr().err == "  stage: line\n"


@pytest.mark.parametrize(("options", "shown"), [((), True), (("--quiet",), False)])
def test_predict_shows_progress_unless_it_is_to_be_quiet(tiny_model, tiny_shards, tmp_path, capsys, options, shown):
    out = tmp_path / "tags.csv"
    assert main(["predict", str(tiny_model), str(tiny_shards / "test-*"), "--out", str(out), *options]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 8 videos\n"
    assert bool(said.err) == shown


def test_plain_lines_come_in_intervals_and_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.2)
    with PlainProgress().task("train", 300, "videos") as task:
        task.resume_at(100)
        for loss in range(4):
            time.sleep(0.15)
            task.advance(50, note=f"loss {loss}")
    lines = capsys.readouterr().err.splitlines()
    for line, done, loss in zip(lines, (200, 300, 300), (1, 3, 3), strict=True):
        assert re.fullmatch(rf"  train: {done}/300 videos, \d+/s,( 0:00 left,)? memory .* GB, loss {loss}", line)


def test_a_bar_on_a_terminal_shows_the_work_and_leaves_one_line(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "200")
        with default_progress().task("train", 4, "videos") as task:
            time.sleep(0.6)  # the bar is drawn four times a second
            task.advance(4)
    shown = b""
    with suppress(OSError):  # the end of a terminal that was closed
        while part := os.read(ours, 100_000):
            shown += part
    os.close(ours)
    shown = shown.decode()
    assert "train: 0/4 videos" in shown
    assert "━" in shown
    assert "  train: 4/4 videos" in shown.rstrip().splitlines()[-1]
