"""Processes that work for this one, and end with it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.resource_tracker import ensure_running
from typing import Any, Protocol

from reeltag.core.environment import available_cpus, keep_freed_memory
from reeltag.core.errors import WorkerError
from reeltag.core.interrupts import hold_signals

RETRIES = 3  # of a task whose process died
PROCESS_BYTES = 1_000_000_000  # of memory, for torch and a batch
SAVING_SECONDS = 30.0  # that work has to save itself when it is broken off


@dataclass(frozen=True)
class Needs:
    """What a task takes of a machine.

    Attributes:
        processors: that it keeps busy.
        gpus: that it computes on, where there are any.
        memory: bytes, estimated.
        processes: that do it together, each of which takes as much.
    """

    processors: int = 1
    gpus: int = 0
    memory: int = 0
    processes: int = 1


class Pool(Protocol):
    """Where tasks run side by side."""

    def submit(self, needs: Needs, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function of a module elsewhere, and again where its process dies, but not for ever.

        The future raises what the function raised, or WorkerError.
        """


@contextmanager
def spawned(devices: Sequence[str]) -> Iterator[Pool]:
    """Processes on this machine for the work of a block, one a device: `cpu`, `cuda:N`, or `cuda` for any.

    What is left of the work when the block ends, however it does, is broken off: SIGTERM tells it to save itself. A
    script that uses them has to keep what it does under `if __name__ == "__main__"`, since each imports it.
    """
    pool = _Processes(devices)
    try:
        yield pool
    finally:
        pool.end()


@dataclass
class _Task:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Future[Any]
    left: int = RETRIES


@dataclass
class _Place:
    device: str
    pool: ProcessPoolExecutor
    busy: bool = False


class _Processes:
    """One process a device, each in a pool of its own, so that one that dies takes nobody else's work with it."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._context = spawning()
        self._theirs, self._ours = self._context.Pipe(duplex=False)  # ours closes with the block, or with this process
        self._lock, self._ended = threading.RLock(), False
        self._waiting: deque[_Task] = deque()
        self._threads = max(1, available_cpus() // len(devices))
        self._places = [_Place(device, self._started(device)) for device in devices]

    def submit(self, needs: Needs, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See `Pool`. What a task needs is not weighed here: it gets a process, and starts others itself."""
        task = _Task(function, arguments, Future())
        with self._lock:
            self._waiting.append(task)
            self._begin()
        return task.future

    def end(self) -> None:
        """Break off what is left."""
        with self._lock:
            self._ended = True
        self._ours.close()
        for place in self._places:
            place.pool.shutdown()
        self._theirs.close()

    def _started(self, device: str) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, _prepare, (self._theirs, device, self._threads))

    def _begin(self) -> None:
        for place in self._places:
            if self._waiting and not place.busy and not self._ended:
                task, place.busy = self._waiting.popleft(), True
                with without_interrupts():  # of the process that starts now
                    running = place.pool.submit(task.function, *task.arguments)
                running.add_done_callback(partial(self._done, task, place))

    def _done(self, task: _Task, place: _Place, running: Future[Any]) -> None:
        error = running.exception()
        died = isinstance(error, BrokenProcessPool)
        with self._lock:
            place.busy = False
            if died and not self._ended:
                place.pool.shutdown(wait=False)
                place.pool = self._started(place.device)
            if died and task.left and not self._ended:
                task.left -= 1
                self._waiting.appendleft(task)
            elif died:
                task.future.set_exception(died_too_often(RETRIES))
            elif error is not None:
                task.future.set_exception(error)
            else:
                task.future.set_result(running.result())
            self._begin()


def died_too_often(retries: int, reason: str = "it was killed, or memory ran out") -> WorkerError:
    """What is said of a task that was tried so often again."""
    return WorkerError(
        f"a worker process died {retries + 1} times over the same work: {reason}; what is finished is kept, so run the "
        "same command again, with fewer workers where memory is short"
    )


def spawning() -> SpawnContext:
    """What starts fresh processes, from which `without_interrupts` can hold back Ctrl-C."""
    ensure_running()  # would let all signals through again, were it started there
    return get_context("spawn")


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back from processes that a block starts, for good: this one ends them.

    Here it waits for the block's end, whichever thread it comes to: a process half started ends with a stack trace.
    """
    with hold_signals(lambda _: None):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(alive: Connection, device: str, threads: int) -> None:
    if device != "cuda":  # any
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cpu").removeprefix("cuda:")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    begin(alive)


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
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVING_SECONDS)
    os._exit(1)
