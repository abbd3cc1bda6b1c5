"""The process group of a training: ranks, messages between them, and the launcher for one machine.

Rank and world size are read from the environment variables that torchrun defines. It does not matter what set them:
`launch`, torchrun, or a task of a Ray cluster.
"""

from __future__ import annotations

import atexit
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_start_method, set_start_method
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from reeltag.core.distributed.process_pool import initialize_worker, spawn_context, without_interrupts
from reeltag.core.errors import ReeltagError, WorkerError
from reeltag.core.interrupts import hold_signals, raise_on_sigterm

T = TypeVar("T")

# One rank may do hours of other work while the rest wait. Dead ranks are noticed without this limit.
TIMEOUT = timedelta(days=7)
# The death of a rank causes errors in the ranks that communicate with it, and those may arrive first.
CAUSE_SECONDS = 2.0
# After its report a rank only has to clean up.
EXIT_SECONDS = 2.0


def rank() -> int:
    """Return the rank of this process in the training; rank 0 writes files and reports progress."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of ranks that share the training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def local_rank() -> int:
    """Return the rank of this process among those on this machine; it is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", rank() % local_world_size()))


def initialize() -> None:
    """Initialize torch's process group unless that is done; NCCL connects GPUs, and gloo connects CPUs."""
    import torch.distributed

    if world_size() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(timeout=TIMEOUT)
        atexit.register(_leave)


def _leave() -> None:
    """Leave the process group, unless that is done; threads that outlive the interpreter can end it with SIGABRT."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    import torch.distributed

    if world_size() == 1:
        return value
    initialize()
    values = [value]
    torch.distributed.broadcast_object_list(values, 0)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, in the order of ranks, on every rank."""
    import torch.distributed

    if world_size() == 1:
        return [value]
    initialize()
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def all_reduce_max(*values: int) -> list[int]:
    """Return the maximum over all ranks of each value, on every rank; also a barrier."""
    import torch

    if world_size() == 1:
        return list(values)
    initialize()
    largest = torch.tensor(values)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    result: list[int] = largest.tolist()
    return result


def launch(work: Callable[[], T], processes: int) -> T:
    """Run a function in several ranks on this machine, which divide its threads among them.

    The first Ctrl-C or SIGTERM is passed on to rank 0, and the other ranks learn of it at the next step of the
    training; a second one kills all ranks at once. All ranks end when this process ends, even if it is killed. A script
    that calls this needs an `if __name__ == "__main__"` guard, since each rank imports the script.

    Args:
        work: the function; it must be picklable.
        processes: number of ranks.

    Returns:
        The result of rank 0.

    Raises:
        ReeltagError: a rank raised it.
        WorkerError: a rank died before its work was done.
        KeyboardInterrupt: Ctrl-C or SIGTERM arrived; the ranks handled it first.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the rendezvous of the ranks
    threads = max(1, torch.get_num_threads() // processes)
    context = spawn_context()
    alive, keep = context.Pipe(duplex=False)  # `keep` closes with this block, or with this process
    ranks: list[_Rank] = []
    try:
        with without_interrupts():
            for number in range(processes):
                report, sender = context.Pipe()
                setup = _Setup(_environment(number, processes, store.port), get_start_method(), threads)
                process = context.Process(target=_run_rank, args=(alive, sender, setup, work))
                ranks.append(_Rank(number, process, report))
                process.start()
                sender.close()
        with hold_signals(lambda _: ranks[0].process.terminate()) as interrupt:
            try:
                result: T = _wait_for(ranks)
            except (WorkerError, KeyboardInterrupt):
                interrupt.release()  # the ranks end for the signal that arrived here
                raise
        return result
    finally:
        for each in ranks:
            each.end()
        keep.close()
        alive.close()


@dataclass(frozen=True)
class _Setup:
    environment: Mapping[str, str]
    start_method: str
    threads: int


@dataclass(frozen=True)
class _Outcome:
    result: Any = None
    error: BaseException | None = None
    trace: str = ""


@dataclass
class _Rank:
    number: int
    process: SpawnProcess
    report: Connection
    outcome: _Outcome | None = None
    reported: bool = False

    def poll(self) -> bool:
        """Return True once the rank has reported or died."""
        alive = self.process.is_alive()  # checked before the report, since the rank may report and exit in between
        if self.outcome is None and self.report.poll():
            try:
                self.outcome, self.reported = self.report.recv(), True
            except EOFError:
                alive = False
        if self.outcome is None and not alive:
            what = f"process {self.number} of the training died: it was killed or ran out of memory"
            advice = "the other processes were stopped too, so run the same command again to resume"
            self.outcome = _Outcome(error=WorkerError(f"{what}; {advice}"))
        return self.outcome is not None

    def end(self) -> None:
        self.report.close()
        if self.reported:
            self.process.join(EXIT_SECONDS)
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()


def _wait_for(ranks: Sequence[_Rank]) -> Any:
    """Return the result of rank 0 once all ranks are done, or raise the error that caused all others."""
    working, failed = list(ranks), list[_Outcome]()
    deadline = math.inf
    while working and time.monotonic() < deadline:
        # With a timeout, since a dead rank's pipe stays open as long as a child process of it lives.
        wait([each.report for each in working], timeout=0.2)
        working = [each for each in working if not each.poll()]
        failed = sorted((each.outcome for each in ranks if each.outcome and each.outcome.error), key=_cause_first)
        if failed:
            deadline = min(deadline, time.monotonic() + CAUSE_SECONDS)
        if failed and isinstance(failed[0].error, ReeltagError) and not isinstance(failed[0].error, WorkerError):
            break
    if failed and failed[0].error:
        raise failed[0].error from (RuntimeError(failed[0].trace) if failed[0].trace else None)
    assert ranks[0].outcome is not None
    return ranks[0].outcome.result


def _cause_first(outcome: _Outcome) -> int:
    """Sort key of errors, the likely cause first: errors of the work, then deaths of ranks, then all that follows."""
    error = outcome.error
    return 1 if isinstance(error, WorkerError) else 0 if isinstance(error, ReeltagError | KeyboardInterrupt) else 2


def _environment(number: int, processes: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun would set."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # The store at that port exists already, so rank 0 must not open another one.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _run_rank(alive: Connection, report: Connection, setup: _Setup, work: Callable[[], Any]) -> None:
    """Run the work in a rank, and report its outcome.

    Args:
        alive: see `initialize_worker`.
        report: connection that the outcome is sent through.
        setup: environment variables, start method of child processes and number of threads.
        work: the function.
    """
    import torch

    os.environ.update(setup.environment)
    initialize_worker(alive)
    torch.set_num_threads(setup.threads)
    set_start_method(setup.start_method, force=True)  # of data loaders; a spawned process would spawn them, slowly
    try:
        with raise_on_sigterm():
            result = work()
        outcome = _Outcome(result if rank() == 0 else None)
    except BaseException as error:
        expected = isinstance(error, ReeltagError | KeyboardInterrupt)
        outcome = _Outcome(error=error, trace="" if expected else traceback.format_exc())
    report.send(outcome)
    with suppress(EOFError, OSError):
        report.recv()  # until the other end closes; before that it may still fetch tensors from this process's memory
