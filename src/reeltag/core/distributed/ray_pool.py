"""Tasks on a Ray cluster: as many at a time as its machines have room for, again where one dies."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reeltag.core.distributed.process_pool import SAVING_SECONDS, Needs, Pool, died_too_often
from reeltag.core.errors import ReeltagError, UsageError
from reeltag.core.text import megabytes

RETRIES = 10  # of a task whose worker or machine died; machines that may be taken away are many
KNOCK_SECONDS = 10.0


@contextmanager
def ray_cluster(address: str | None = None, *, gpu: bool = False) -> Iterator[Pool]:
    """A Ray cluster for the work of a block; what is left of it when the block ends is cancelled.

    Every machine has to have reeltag, and what is named by path has to be at that path on all of them.

    Args:
        address: of a cluster that is there, as `ray start --head` prints it; by default that of RAY_ADDRESS, or else
            one of this machine's processors and GPUs is started, and ended with the block.
        gpu: whether the work cannot do without one.

    Raises:
        UsageError: Ray is not installed, there is no cluster, or it has no GPU.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(f"Ray needs {error.name}, which is not installed; pip install 'reeltag[ray]'") from error
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of progress are alike, and all of them are wanted
    before = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
    try:
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
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
    """See `Pool`."""

    def __init__(self) -> None:
        import ray

        self._ray, self._left = ray, dict[Any, Future[Any]]()
        machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._machines = [machine["Resources"] for machine in machines if machine["Alive"]]
        self.gpus = sum(machine.get("GPU", 0) for machine in self._machines)

    def submit(self, needs: Needs, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See `Pool`; raises UsageError where no machine is large enough."""
        options, here = self._options(needs), str(Path.cwd())
        if needs.processes == 1:
            reference = (
                self._ray.remote(_call).options(**options, max_retries=RETRIES).remote(here, function, *arguments)
            )
        else:
            leader = self._ray.remote(_lead).options(num_cpus=0, max_retries=RETRIES)
            reference = leader.remote(options, needs.processes, here, function, *arguments)
        future = self._left[reference] = Future[Any]()
        reference.future().add_done_callback(lambda done: self._done(reference, done))
        return future

    def end(self) -> None:
        """Interrupt what is left, and give it time to save itself."""
        left = dict(self._left)
        for reference in left:
            self._ray.cancel(reference)
        wait(left.values(), SAVING_SECONDS)

    def _options(self, needs: Needs) -> dict[str, float]:
        wanted = {"CPU": needs.processors, "GPU": needs.gpus if self.gpus else 0, "memory": needs.memory}
        if not any(all(machine.get(key, 0) >= value for key, value in wanted.items()) for machine in self._machines):
            gpus = f", {needs.gpus} GPUs" if wanted["GPU"] else ""
            what = f"{needs.processors} processors{gpus} and {megabytes(needs.memory)} of memory"
            raise UsageError(f"no machine of the Ray cluster has the {what} that a stage takes; add a larger one")
        return {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"], "memory": wanted["memory"]}

    def _done(self, reference: Any, done: Future[Any]) -> None:
        future, error = self._left.pop(reference), done.exception()
        if error is None:
            found = done.result()
            future.set_exception(found.error) if isinstance(found, _Failed) else future.set_result(found)
        elif isinstance(error, self._ray.exceptions.RayTaskError):  # a bug of ours, or an interrupt
            future.set_exception(error)
        else:
            future.set_exception(died_too_often(RETRIES, _first_line(error)))


@dataclass(frozen=True)
class _Failed:
    """An error that is a result: raised in a task, Ray would put a stack trace around it."""

    error: ReeltagError


def _call(folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where relative paths mean what they mean to who asked for it."""
    try:
        os.chdir(folder)
    except OSError as error:
        what = f"{folder}: is not on {socket.gethostname()} ({error.strerror})"
        return _Failed(UsageError(f"{what}; begin the run in a folder that all machines of the cluster have"))
    try:
        return function(*arguments)
    except ReeltagError as error:
        return _Failed(error)


def _lead(options: dict[str, float], processes: int, *call: Any) -> Any:
    """Have several tasks do the same together, each of which knows its rank, and all again where one dies."""
    import ray
    from ray.util import placement_group, remove_placement_group

    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    group = placement_group([{names[key]: value for key, value in options.items() if value}] * processes)
    try:
        ray.get(group.ready())
        for left in reversed(range(RETRIES + 1)):
            try:
                return _together(group, options, processes, call)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                if not left:
                    raise
    finally:
        remove_placement_group(group)


def _together(group: Any, options: dict[str, float], processes: int, call: tuple[Any, ...]) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=n) for n in range(processes)]
    first = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=places[0])
    host, port = ray.get(first.remote())
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    # A process that had a rank is not used again.
    task = ray.remote(max_calls=1, max_retries=0)(_call_as_rank)
    environments = [{"RANK": str(number), **shared} for number in range(processes)]
    left = ranks = [
        task.options(**options, scheduling_strategy=place).remote(environment, *call)
        for place, environment in zip(places, environments, strict=True)
    ]
    try:
        while left:
            (done,), left = ray.wait(left)
            if isinstance(found := ray.get(done), _Failed):
                return found
        return ray.get(ranks[0])
    finally:
        for rank in left:
            ray.cancel(rank)
        ray.wait(left, num_returns=len(left), timeout=SAVING_SECONDS) if left else None


def _free_address() -> tuple[str, int]:
    """Of this machine as others see it, for ranks to meet at."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return host, free.getsockname()[1]


def _call_as_rank(environment: dict[str, str], *call: Any) -> Any:
    # Ray shows each task its own GPUs alone, as if there were no other rank on its machine.
    os.environ.update(environment, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    return _call(*call)


def _knock(address: str) -> None:
    """Raise an OSError where nothing listens at HOST:PORT; Ray itself would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
