"""Runs in separate processes, and trainings, that tests interrupt or kill."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

from conftest import TINY_RUN
from reeltag.core.progress import Progress, Task

COMMAND = [sys.executable, "-c", "import sys; from reeltag.cli.main import main; sys.exit(main())"]
LONG = (
    'name = "tiny"\nbudget_mb = 0.3\n'
    + TINY_RUN.replace("epochs = 6", "epochs = 600")
    + '[models.a]\nfamily = "mean"\n'
)


def long_recipe(folder):
    """Write a recipe whose training takes long, and return its path."""
    path = folder / "tiny.toml"
    path.write_text(LONG)
    return path


@contextmanager
def started(recipe, out, *overrides):
    """Start a run in its own process group, and yield the process once it trains."""
    sets = (part for each in overrides for part in ("--set", each))
    process = subprocess.Popen(
        [*COMMAND, "run", str(recipe), "--out", str(out), *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )
    try:
        while "train.a" not in (line := process.stderr.readline()):
            assert line, "the run ended before it trained"
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class KilledError(Exception):
    """A training was interrupted."""


class Countdown(Task):
    def __init__(self, steps, *arguments):
        super().__init__(*arguments)
        self.steps = steps

    def advance(self, amount, **facts):
        self.steps -= 1
        if self.steps < 0:
            raise KilledError


class KillAfter(Progress):
    """Progress that interrupts a training after some steps, as a kill would."""

    def __init__(self, steps):
        self.steps = steps

    @contextmanager
    def task(self, name, total, unit):
        yield Countdown(self.steps, name, total, unit)
