"""Progress of long work on a terminal, elsewhere, and when quiet."""

import re
import resource
import sys

import pytest
import torch

from reeltag.cli.main import main
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
