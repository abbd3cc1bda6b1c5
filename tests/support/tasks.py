"""Tasks that the tests of pools run in other processes; in a module of its own, as other processes import it."""

import os
import signal
import time
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.interrupts import hold_signals, raise_on_sigterm


def double(number):
    return 2 * number


def fail(text):
    raise UsageError(text)


def die(folder, times):
    """Kill this process so many times, and then say how often that was."""
    tries = len(list(Path(folder).iterdir()))
    Path(folder, str(tries)).touch()
    if tries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return tries


def meet(folder, name, others):
    """Wait until others have come too, which they can only while this is running."""
    Path(folder, name).touch()
    end = time.monotonic() + 60
    while not all(Path(folder, other).exists() for other in others):
        assert time.monotonic() < end, f"{name} is alone"
        time.sleep(0.02)
    return os.getpid()


def save_when_told(path):
    """Work that does not end by itself, and keeps what it did when it is broken off."""
    with raise_on_sigterm(), hold_signals() as interrupt:
        Path(path).write_text("at work")
        while not interrupt.number:
            time.sleep(0.02)
        Path(path).write_text("saved")


def environment(name):
    return os.environ.get(name)
