"""A pool on a Ray cluster: it runs as many tasks at a time as the machines have resources, and retries after deaths."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reeltag.core.distributed.process_pool import GRACE_SECONDS, Pool, Resources, retries_exhausted
from reeltag.core.environment import install_command
from reeltag.core.errors import ReeltagError, UsageError
from reeltag.core.text import megabytes

RETRIES = 10  # of a task whose worker or machine died; many, since preemptible machines die often
CONNECT_SECONDS = 10.0


@contextmanager
def open_ray_pool(address: str | None = None, *, gpu: bool = False) -> Iterator[Pool]:
    """Open a pool on a Ray cluster for a block; unfinished tasks are cancelled when the block ends.

    reeltag must be installed on every machine, and paths must mean the same files on all of them.

    Args:
        address: address of a running cluster, as `ray start --head` prints it; by default RAY_ADDRESS. Without either,
            a cluster of this machine's CPUs and GPUs is started, and stopped when the block ends.
        gpu: True if the work needs a GPU.

    Raises:
        UsageError: Ray is not installed, no cluster answers, or it has no GPU.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(f"Ray needs {error.name}, which is not installed; {install_command('ray')}") from error
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray would drop lines of progress as duplicates
    before = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    try:
        _check_listening(address or os.environ.get("RAY_ADDRESS", ""))
        with _silent_stderr():
            ray.init(address, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = address or os.environ.get("RAY_ADDRESS", "this machine")
        what = f"no Ray cluster answers ({_first_line(error)})"
        raise UsageError(f"{where}: {what}; check the address, or start one with `ray start --head`") from error
    if signal.getsignal(signal.SIGTERM) is not before:
        signal.signal(signal.SIGTERM, before)
    try:
        pool = _RayPool()
        if gpu and not pool.gpus:
            where = ray.get_runtime_context().gcs_address
            raise UsageError(f"{where}: the Ray cluster has no GPU, and the recipe asks for one; add one, or use cpu")
        try:
            yield pool
        finally:
            pool.end()
    finally:
        ray.shutdown()


class _RayPool:
    """Pool of Ray tasks; see `Pool`."""

    def __init__(self) -> None:
        import ray

        self._ray, self._unfinished = ray, dict[Any, Future[Any]]()
        machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._machines = [machine["Resources"] for machine in machines if machine["Alive"]]
        self.gpus = sum(machine.get("GPU", 0) for machine in self._machines)

    def submit(self, resources: Resources, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See `Pool`.

        Raises:
            UsageError: no machine of the cluster has the resources.
        """
        options, folder = self._options(resources), str(Path.cwd())
        if resources.processes == 1:
            reference = (
                self._ray.remote(_call).options(**options, max_retries=RETRIES).remote(folder, function, *arguments)
            )
        else:
            leader = self._ray.remote(_lead).options(num_cpus=0, max_retries=RETRIES)
            reference = leader.remote(options, resources.processes, folder, function, *arguments)
        future = self._unfinished[reference] = Future[Any]()
        reference.future().add_done_callback(lambda done: self._done(reference, done))
        return future

    def room(self, resources: Resources) -> int:
        """See `Pool`; counts by the resources that no other work of the cluster shares."""
        wanted = {key: value for key, value in self._wanted(resources).items() if value}
        fit = sum(min(int(each.get(key, 0) // value) for key, value in wanted.items()) for each in self._machines)
        return max(1, fit // resources.processes)

    def end(self) -> None:
        """Interrupt unfinished tasks, and give them time to save their state."""
        unfinished = dict(self._unfinished)
        for reference in unfinished:
            self._ray.cancel(reference)
        wait(unfinished.values(), GRACE_SECONDS)

    def _options(self, resources: Resources) -> dict[str, float]:
        wanted = self._wanted(resources)
        if not any(all(machine.get(key, 0) >= value for key, value in wanted.items()) for machine in self._machines):
            gpus = f", {resources.gpus} GPUs" if wanted["GPU"] else ""
            what = f"{resources.cpus} CPUs{gpus} and {megabytes(resources.memory)} of memory"
            raise UsageError(f"no machine of the Ray cluster has the {what} that a stage needs; add a larger machine")
        return {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"], "memory": wanted["memory"]}

    def _wanted(self, resources: Resources) -> dict[str, float]:
        """Return what a process of a task takes, as Ray names it."""
        return {"CPU": resources.cpus, "GPU": resources.gpus if self.gpus else 0, "memory": resources.memory}

    def _done(self, reference: Any, done: Future[Any]) -> None:
        future, error = self._unfinished.pop(reference), done.exception()
        if error is None:
            result = done.result()
            future.set_exception(result.error) if isinstance(result, _Failed) else future.set_result(result)
        elif isinstance(error, self._ray.exceptions.RayTaskError):  # a bug in reeltag, or an interrupt
            future.set_exception(error)
        else:
            future.set_exception(retries_exhausted(RETRIES, _first_line(error)))


@dataclass(frozen=True)
class _Failed:
    """Error that a task returns as its result; if the task raised it, Ray would wrap it in a stack trace."""

    error: ReeltagError


def _call(folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the working directory of the process that submitted it, so that relative paths agree."""
    try:
        os.chdir(folder)
    except OSError as error:
        what = f"{folder}: does not exist on {socket.gethostname()} ({error.strerror})"
        return _Failed(UsageError(f"{what}; start the run in a folder that all machines of the cluster share"))
    try:
        return function(*arguments)
    except ReeltagError as error:
        return _Failed(error)


def _lead(options: dict[str, float], processes: int, *call: Any) -> Any:
    """Run a function in several tasks at once, one per rank; if one of them dies, run all of them again."""
    import ray
    from ray.util import placement_group, remove_placement_group

    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    group = placement_group([{names[key]: value for key, value in options.items() if value}] * processes)
    try:
        ray.get(group.ready())
        for left in reversed(range(RETRIES + 1)):
            try:
                return _run_ranks(group, options, processes, call)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                if not left:
                    raise
    finally:
        remove_placement_group(group)


def _run_ranks(group: Any, options: dict[str, float], processes: int, call: tuple[Any, ...]) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=n) for n in range(processes)]
    first = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=strategies[0])
    host, port = ray.get(first.remote())
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    # With max_calls=1, a process that had a rank is not reused.
    task = ray.remote(max_calls=1, max_retries=0)(_call_as_rank)
    environments = [{"RANK": str(number), **shared} for number in range(processes)]
    left = ranks = [
        task.options(**options, scheduling_strategy=strategy).remote(environment, *call)
        for strategy, environment in zip(strategies, environments, strict=True)
    ]
    try:
        while left:
            (done,), left = ray.wait(left)
            if isinstance(result := ray.get(done), _Failed):
                return result
        return ray.get(ranks[0])
    finally:
        for rank in left:
            ray.cancel(rank)
        ray.wait(left, num_returns=len(left), timeout=GRACE_SECONDS) if left else None


def _free_address() -> tuple[str, int]:
    """Return the IP address of this machine and a free port, for the rendezvous of the ranks."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return host, free.getsockname()[1]


def _call_as_rank(environment: dict[str, str], *call: Any) -> Any:
    # Each Ray task sees only its own GPUs, as if it were the only rank on its machine.
    os.environ.update(environment, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    return _call(*call)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what C++ code writes to standard error in a block: Ray's attempts to connect, before our own message."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_listening(address: str) -> None:
    """Raise an OSError if nothing listens at HOST:PORT, for which Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
