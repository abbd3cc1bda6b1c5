"""Runs in processes of their own, for tests that disturb them."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

from conftest import TINY_RUN

COMMAND = [sys.executable, "-c", "import sys; from reeltag.cli import main; sys.exit(main())"]
LONG = (
    'name = "tiny"\nbudget_mb = 0.3\n'
    + TINY_RUN.replace("epochs = 6", "epochs = 600")
    + '[models.a]\nfamily = "mean"\n'
)


def long_recipe(folder):
    """A recipe with a training that lasts."""
    path = folder / "tiny.toml"
    path.write_text(LONG)
    return path


@contextmanager
def started(recipe, out, *overrides):
    """A run in a group of its own, once it trains."""
    sets = (part for each in overrides for part in ("--set", each))
    process = subprocess.Popen(
        [*COMMAND, "run", str(recipe), "--out", str(out), *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    try:
        while "train.a" not in (line := process.stderr.readline()):
            assert line, "the run ended before it trained"
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
