"""Ctrl-C, SIGTERM and time limits: they stop long work at once or, on request, at its next safe point."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
REPEAT_SECONDS = 0.5


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which stops work as Ctrl-C does."""


class TimeLimitReached(KeyboardInterrupt):
    """Raised when the time limit of a command has passed, which stops work as Ctrl-C does."""


@dataclass
class HeldSignal:
    """Signal that was deferred within a block.

    Attributes:
        number: signal number; 0 if none has arrived.
    """

    number: int = 0

    def release(self, number: int = 0) -> None:
        """Raise the deferred signal, or `number`, a signal that another process received; do nothing without one."""
        if number or self.number:
            _end(number or self.number)


def _say_saving(number: int) -> None:
    os.write(2, b"\nsaving; once more ends at once\n")  # not print, which the signal may have interrupted


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM within a block."""
    if not _receives_signals():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise `TimeLimitReached` in a block of the main thread after `seconds`; never if None."""
    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def hold_signals(then: Callable[[int], None] = _say_saving) -> Iterator[HeldSignal]:
    """Defer the first signal until the block ends or calls `release`; a second signal stops the block at once.

    Signals within half a second count as one, because a process group may be signalled as a whole while its members
    also signal each other. The time limit never counts as a second signal.

    Args:
        then: called with the number of the first signal when it arrives.
    """
    found = HeldSignal()
    # A signal without a Python handler keeps its default action, or stays ignored.
    before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    first = 0.0

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not found.number:
            found.number, first = number, time.monotonic()
            then(number)
        elif number != signal.SIGALRM and time.monotonic() - first > REPEAT_SECONDS:
            restore()
            _end(number)

    if not _receives_signals():
        before = {}
    for number in before:
        signal.signal(number, hold)
    try:
        yield found
    finally:
        restore()
    if found.number:
        signal.raise_signal(found.number)  # for an enclosing block, which may defer it too


def _receives_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: FrameType | None = None) -> None:
    raise {signal.SIGTERM: Terminated, signal.SIGALRM: TimeLimitReached}.get(signal.Signals(number), KeyboardInterrupt)
