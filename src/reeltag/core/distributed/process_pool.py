"""A pool of worker processes on this machine, which end with this process."""

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
PROCESS_BYTES = 1_000_000_000  # memory of a process with torch and a batch
GRACE_SECONDS = 30.0  # between SIGTERM and the end of a worker, for the work to save its state


@dataclass(frozen=True)
class Resources:
    """Resources of a machine that each process of a task needs.

    Attributes:
        cpus: number of CPUs.
        gpus: number of GPUs, if the pool has any.
        memory: estimated memory in bytes.
        processes: number of processes that run the task together.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0
    processes: int = 1


class Pool(Protocol):
    """Pool of workers that run tasks in parallel."""

    def submit(self, resources: Resources, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function in another process; if that process dies, call it again, a limited number of times.

        Args:
            resources: resources that the task needs.
            function: a picklable function, so one of a module.
            arguments: picklable arguments.

        Returns:
            The function's result, as a future. It raises the function's exception, or WorkerError after the last try.
        """

    def room(self, resources: Resources) -> int:
        """Return the number of tasks with these resources that run at a time, at least 1."""


@contextmanager
def open_process_pool(devices: Sequence[str]) -> Iterator[Pool]:
    """Open a pool of processes on this machine for a block.

    Unfinished work is cancelled when the block ends, also by an exception: it gets SIGTERM, and 30 seconds to save its
    state. A script that uses a pool needs an `if __name__ == "__main__"` guard, since each process imports the script.

    Args:
        devices: device of each process: `cpu`, `cuda:N`, or `cuda` for all GPUs.
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
class _Worker:
    device: str
    pool: ProcessPoolExecutor
    busy: bool = False


class _Processes:
    """One process per device, each in an executor of its own, so that its death does not break the others' tasks."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._context = spawn_context()
        self._alive, self._keep = self._context.Pipe(duplex=False)  # `_keep` closes with the block, or this process
        self._lock, self._ended = threading.RLock(), False
        self._waiting: deque[_Task] = deque()
        self._threads = max(1, available_cpus() // len(devices))
        self._workers = [_Worker(device, self._executor(device)) for device in devices]

    def submit(self, resources: Resources, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See `Pool`. The resources are ignored: each task gets one process, and starts further ones itself."""
        task = _Task(function, arguments, Future())
        with self._lock:
            self._waiting.append(task)
            self._start_tasks()
        return task.future

    def room(self, resources: Resources) -> int:
        """See `Pool`."""
        return len(self._workers)

    def end(self) -> None:
        """Cancel unfinished work."""
        with self._lock:
            self._ended = True
        self._keep.close()
        for worker in self._workers:
            worker.pool.shutdown()
        self._alive.close()

    def _executor(self, device: str) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, _prepare, (self._alive, device, self._threads))

    def _start_tasks(self) -> None:
        for worker in self._workers:
            if self._waiting and not worker.busy and not self._ended:
                task, worker.busy = self._waiting.popleft(), True
                with without_interrupts():  # in the process that may start now
                    running = worker.pool.submit(task.function, *task.arguments)
                running.add_done_callback(partial(self._done, task, worker))

    def _done(self, task: _Task, worker: _Worker, running: Future[Any]) -> None:
        error = running.exception()
        died = isinstance(error, BrokenProcessPool)
        with self._lock:
            worker.busy = False
            if died and not self._ended:
                worker.pool.shutdown(wait=False)
                worker.pool = self._executor(worker.device)
            if died and task.left and not self._ended:
                task.left -= 1
                self._waiting.appendleft(task)
            elif died:
                task.future.set_exception(retries_exhausted(RETRIES))
            elif error is not None:
                task.future.set_exception(error)
            else:
                task.future.set_result(running.result())
            self._start_tasks()


def retries_exhausted(retries: int, reason: str = "it was killed or ran out of memory") -> WorkerError:
    """Return the error of a task whose process died at the first try and at each retry."""
    return WorkerError(
        f"a worker process died {retries + 1} times on the same task: {reason}; finished work is kept, so run the same "
        "command again, with fewer workers if memory is short"
    )


def spawn_context() -> SpawnContext:
    """Return multiprocessing's spawn context, ready to start processes inside `without_interrupts`."""
    ensure_running()  # started inside `without_interrupts`, the resource tracker would unblock all signals
    return get_context("spawn")


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for good in processes that are started in a block, since this process ends them itself.

    In this process Ctrl-C is deferred to the end of the block, in every thread, because a process that is interrupted
    while it starts prints a stack trace.
    """
    with hold_signals(lambda _: None):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(alive: Connection, device: str, threads: int) -> None:
    if device != "cuda":  # which means all GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cpu").removeprefix("cuda:")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    initialize_worker(alive)


def initialize_worker(alive: Connection) -> None:
    """Prepare a worker process: keep freed memory, and end when the parent process ends.

    Args:
        alive: end of a pipe whose other end the parent keeps open.
    """
    keep_freed_memory()
    exit_with_parent(alive)


def exit_with_parent(alive: Connection) -> None:
    """End this process when the parent process ends.

    Args:
        alive: end of a pipe whose other end the parent keeps open.
    """
    threading.Thread(target=_exit_with_parent, args=(alive,), daemon=True).start()


def _exit_with_parent(alive: Connection) -> None:
    """Wait until the other end of the pipe closes, since nothing is ever sent through it; then end this process."""
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)
