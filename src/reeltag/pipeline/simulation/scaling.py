"""A recipe on 1, 2, 4, … GPUs of described machines: hours, what limits them, traffic and price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reeltag.core.errors import UsageError
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.simulation.list_scheduling import HOUR, Task, alone, critical_path, schedule, stage_tasks
from reeltag.pipeline.simulation.machines import Machines
from reeltag.training.trainer import CHECKPOINT_SECONDS, CHECKPOINT_SHARE

ENOUGH = 1.1  # as fast as it gets, but for so little


@dataclass(frozen=True)
class Row:
    """A recipe on a number of GPUs.

    Attributes:
        gpus: devices.
        nodes: that they are in.
        hours: from the first stage's start to the last one's end.
        computing: share of the GPUs' time that is arithmetic.
        waiting: share in which they are taken, but wait for data or for each other.
        read_gb_s: that a node reads on average.
        peak_gb_s: most that a node reads.
        cost: of the nodes.
        limit: the lower bound that is closest: "critical path", "GPUs" or "reading".
        bound: hours of this bound.
    """

    gpus: int
    nodes: int
    hours: float
    computing: float
    waiting: float
    read_gb_s: float
    peak_gb_s: float
    cost: float
    limit: str
    bound: float


@dataclass(frozen=True)
class Scaling:
    """A recipe on more and more GPUs.

    Attributes:
        rows: with 1, 2, 4, … GPUs, up to all.
        path: stages of the critical path and their hours, on all machines.
        gpu_hours: of arithmetic.
        read: bytes of videos that are read.
        targets_written: bytes of soft targets.
        targets_read: bytes of them that are read.
        checkpoints: bytes of checkpoints that are written, at most.
    """

    rows: tuple[Row, ...]
    path: tuple[tuple[str, float], ...]
    gpu_hours: float
    read: float
    targets_written: float
    targets_read: float
    checkpoints: float

    @property
    def enough(self) -> int:
        """The fewest GPUs that are nearly as fast as any number of them."""
        fastest = min(row.hours for row in self.rows)
        return next(row.gpus for row in self.rows if row.hours <= ENOUGH * fastest)


def scaling(stages: Sequence[Stage], machines: Machines, video_bytes: int) -> Scaling:
    """Simulate a plan on 1, 2, 4, … GPUs.

    Args:
        stages: of the plan.
        machines: to run on.
        video_bytes: of a video.

    Raises:
        UsageError: the plan has nothing to compute, as far as it knows.
    """
    if not any(stage.gpu_hours for stage in stages):
        raise UsageError(
            "nothing to simulate: no model is trained, or the number of videos is not known; give it, as "
            "--set data.videos=5000000"
        )
    total = machines.nodes * machines.gpus
    counts = [*(1 << power for power in range(total.bit_length()) if 1 << power < total), total]
    rows = [_row(stage_tasks(stages, machines, video_bytes, n), machines, n) for n in counts]
    tasks = stage_tasks(stages, machines, video_bytes, total)
    seconds = {task.name: alone(task, machines.gpus, machines.data_rate) for task in tasks}
    return Scaling(
        tuple(rows),
        tuple((name, seconds[name] / HOUR) for name in critical_path(tasks, seconds)),
        sum(task.computing for task in tasks) / HOUR,
        sum(stage.traffic.videos for stage in stages) * video_bytes,
        sum(stage.bytes for stage in stages if stage.name.startswith("targets.")),
        sum(stage.traffic.targets for stage in stages),
        sum(_checkpoints(stage, seconds[stage.name], machines) for stage in stages if stage.traffic.steps),
    )


def _row(tasks: Sequence[Task], machines: Machines, gpus: int) -> Row:
    shape = machines.shape(gpus)
    found = schedule(tasks, shape, machines.data_rate)
    held = sum(
        (found.spans[task.name][1] - found.spans[task.name][0]) * task.devices for task in tasks if task.computing
    )
    computing, read = sum(task.computing for task in tasks), sum(task.bytes for task in tasks)
    seconds = {task.name: alone(task, max(shape), machines.data_rate) for task in tasks}
    bounds = {
        "GPUs": sum(seconds[task.name] * task.devices for task in tasks) / gpus,
        "critical path": sum(seconds[name] for name in critical_path(tasks, seconds)),
        "reading": read / (len(shape) * machines.data_rate),
    }
    limit = max(bounds, key=bounds.__getitem__)
    time = found.seconds
    return Row(
        gpus=gpus,
        nodes=len(shape),
        hours=time / HOUR,
        computing=computing / (time * gpus),
        waiting=max(0.0, held - computing) / (time * gpus),
        read_gb_s=read / (time * len(shape)) / 1e9,
        peak_gb_s=found.peak / 1e9,
        cost=time / HOUR * len(shape) * machines.price,
        limit=limit,
        bound=bounds[limit] / HOUR,
    )


def _checkpoints(stage: Stage, seconds: float, machines: Machines) -> float:
    """Bytes of checkpoints that a training writes, one at its end among them."""
    size = stage.checkpoint_bytes
    pause = max(CHECKPOINT_SECONDS, size / (machines.write_gb_s * 1e9) / CHECKPOINT_SHARE)
    return size * (1 + seconds // pause)
