"""Processes that work for this one, and end with it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.resource_tracker import ensure_running

from reeltag.environment import keep_freed_memory
from reeltag.errors import WorkerError


@contextmanager
def spawned(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for the work of a block; what is left of it when the block ends, however it does, is broken off.

    Submit under `without_interrupts`, which starts the processes. A script that uses them has to keep what it does
    under `if __name__ == "__main__"`, since each imports it.

    Raises:
        WorkerError: a process ended before its work was done.
    """
    context = spawning()
    theirs, ours = context.Pipe(duplex=False)  # ours closes with the block, or with this process
    pool = ProcessPoolExecutor(count, context, begin, (theirs,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process ended before its work was done: it was killed, or memory ran out; what is finished is "
            "kept, so run the same command again, with fewer workers where memory is short"
        ) from error
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def spawning() -> SpawnContext:
    """What starts fresh processes, from which `without_interrupts` can hold back Ctrl-C."""
    ensure_running()  # would let all signals through again, were it started there
    return get_context("spawn")


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back from this thread, and for good from processes that it starts: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(alive: Connection) -> None:
    """What such a process does first.

    Args:
        alive: end of a pipe whose other end is kept by the process that it works for.
    """
    keep_freed_memory()
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    """Wait for the other end of a pipe, which nothing is sent through, to close."""
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)
