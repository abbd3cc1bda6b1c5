"""Several processes in one training: who one is among them, what all agree on, and what starts them on this machine.

Who one is stands in the environment that torchrun sets, and nothing here or above asks who set it: `launch`, torchrun,
or a task of a cluster.
"""

from __future__ import annotations

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

from reeltag.core.distributed.process_pool import begin, spawning, without_interrupts
from reeltag.core.errors import ReeltagError, WorkerError
from reeltag.core.interrupts import hold_signals, raise_on_sigterm

T = TypeVar("T")

# One process may do hours of other work while the rest wait; a process that ended is noticed without it.
PATIENCE = timedelta(days=7)
# A process that ended leaves errors in those that talked with it, and they may be heard of first.
SECONDS_FOR_THE_CAUSE = 2.0
# After its report a process only puts away what it used.
SECONDS_TO_END = 2.0


def rank() -> int:
    """Number of this process among those of the training; the first, 0, is who writes files and tells people."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes share the training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def local_rank() -> int:
    """Return the rank of this process among those on this machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", rank() % local_world_size()))


def join() -> None:
    """Enter the group of processes, once; its messages go by nccl between GPUs and by gloo between processors."""
    import torch.distributed

    if world_size() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(timeout=PATIENCE)


def broadcast(value: T) -> T:
    """What rank 0 gives, in every process."""
    import torch.distributed

    if world_size() == 1:
        return value
    join()
    values = [value]
    torch.distributed.broadcast_object_list(values, 0)
    return values[0]


def gathered(value: T) -> list[T]:
    """What each process gives, by rank, in every process."""
    import torch.distributed

    if world_size() == 1:
        return [value]
    join()
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def agreed(*values: int) -> list[int]:
    """The largest that any process gives of each value; no process goes on before all have come here."""
    import torch

    if world_size() == 1:
        return list(values)
    join()
    largest = torch.tensor(values)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    found: list[int] = largest.tolist()
    return found


def launch(work: Callable[[], T], processes: int) -> T:
    """Do work in several processes on this machine, which share its threads.

    The first Ctrl-C or SIGTERM goes to rank 0, from which the others hear of it at the next step of a training; a
    second ends all at once. They end with this process, however it does. A script that calls this has to keep what it
    does under `if __name__ == "__main__"`, since each process imports it.

    Args:
        work: can be pickled.
        processes: how many.

    Returns:
        What rank 0 returned.

    Raises:
        ReeltagError: what a process raised.
        WorkerError: a process ended before its work was done.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what the work does on it was done first.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they find each other
    threads = max(1, torch.get_num_threads() // processes)
    context = spawning()
    theirs, ours = context.Pipe(duplex=False)  # ours closes with this block, or with this process
    ranks: list[_Rank] = []
    try:
        with without_interrupts():
            for number in range(processes):
                report, told = context.Pipe()
                environment = _environment(number, processes, store.port)
                arguments = (theirs, told, environment, get_start_method(), threads, work)
                process = context.Process(target=_take_part, args=arguments)
                ranks.append(_Rank(number, process, report))
                process.start()
                told.close()
        with hold_signals(lambda _: ranks[0].process.terminate()) as interrupt:
            try:
                result: T = _watch(ranks)
            except (WorkerError, KeyboardInterrupt):
                interrupt.release()  # they end by what came here
                raise
        return result
    finally:
        for each in ranks:
            each.end()
        ours.close()
        theirs.close()


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

    def look(self) -> bool:
        """Whether something came of it."""
        alive = self.process.is_alive()  # asked first: it may report and end in between
        if self.outcome is None and self.report.poll():
            try:
                self.outcome, self.reported = self.report.recv(), True
            except EOFError:
                alive = False
        if self.outcome is None and not alive:
            reason = f"process {self.number} of the training ended before its work was done: killed, or out of memory"
            self.outcome = _Outcome(
                error=WorkerError(f"{reason}; the others were ended too, and the same command goes on")
            )
        return self.outcome is not None

    def end(self) -> None:
        self.report.close()
        if self.reported:
            self.process.join(SECONDS_TO_END)
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()


def _watch(ranks: Sequence[_Rank]) -> Any:
    """What rank 0 returned, once all are done, or the error that explains all others."""
    working, failed = list(ranks), list[_Outcome]()
    until = math.inf
    while working and time.monotonic() < until:
        # Not until one ends alone: a process of its own that outlives it keeps its pipes open.
        wait([each.report for each in working], timeout=0.2)
        working = [each for each in working if not each.look()]
        failed = sorted((each.outcome for each in ranks if each.outcome and each.outcome.error), key=_told_last)
        if failed:
            until = min(until, time.monotonic() + SECONDS_FOR_THE_CAUSE)
        if failed and isinstance(failed[0].error, ReeltagError) and not isinstance(failed[0].error, WorkerError):
            break
    if failed and failed[0].error:
        raise failed[0].error from (RuntimeError(failed[0].trace) if failed[0].trace else None)
    assert ranks[0].outcome is not None
    return ranks[0].outcome.result


def _told_last(outcome: _Outcome) -> int:
    """Puts the cause of several errors first: what a process says of its work, then that one ended."""
    error = outcome.error
    return 1 if isinstance(error, WorkerError) else 0 if isinstance(error, ReeltagError | KeyboardInterrupt) else 2


def _environment(number: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # The store at that port is there already.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _take_part(
    alive: Connection,
    report: Connection,
    environment: Mapping[str, str],
    start_method: str,
    threads: int,
    work: Callable[[], Any],
) -> None:
    import torch

    os.environ.update(environment)
    begin(alive)
    torch.set_num_threads(threads)
    set_start_method(start_method, force=True)  # of its loaders; by default they would begin as slowly as this one
    try:
        with raise_on_sigterm():
            result = work()
        outcome = _Outcome(result if rank() == 0 else None)
    except BaseException as error:
        told = isinstance(error, ReeltagError | KeyboardInterrupt)
        outcome = _Outcome(error=error, trace="" if told else traceback.format_exc())
    report.send(outcome)
    with suppress(EOFError, OSError):
        report.recv()  # the other end's close, before which it may still fetch tensors from memory of this process
