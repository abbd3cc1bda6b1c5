"""Ctrl-C, SIGTERM and the end of the time given: they end long work at once or, if it asks, at its next safe point."""

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
    """SIGTERM, which ends work as Ctrl-C does."""


class TimeLimitReached(KeyboardInterrupt):
    """The time that a command was given is over, which ends work as Ctrl-C does."""


@dataclass
class HeldSignal:
    """What was held back in a block.

    Attributes:
        number: of the signal, 0 while none came.
    """

    number: int = 0

    def release(self, number: int = 0) -> None:
        """Raise the signal that was held, or one that came to another process, if any."""
        if number or self.number:
            _end(number or self.number)


def _say_saving(number: int) -> None:
    os.write(2, b"\nsaving; once more ends at once\n")  # print may be what the signal interrupted


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in a block."""
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
    """Let `TimeLimitReached` be raised in a block of the main thread when it took so long, or never by default."""
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
    """Hold the first signal back until the block's end, or until it lets it go; a second ends it at once.

    What comes within half a second is the same one: whoever ends a group of processes may tell each of them, and they
    tell each other. The end of the time given is never a second one.

    Args:
        then: what is done when the first comes, with its number.
    """
    found = HeldSignal()
    # A signal that has no handler ends the process, or is ignored; that stays so.
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
        signal.raise_signal(found.number)  # to a block around this one, which may hold it too


def _receives_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: FrameType | None = None) -> None:
    raise {signal.SIGTERM: Terminated, signal.SIGALRM: TimeLimitReached}.get(signal.Signals(number), KeyboardInterrupt)
