"""Estimate how long a recipe takes on given machines, by list scheduling of its stages.

The schedule is a list schedule: whenever devices are free, the ready stage with the longest way to the end starts.
Stages that read on the same node share what it can read, the modest first; a stage that gets less than it asks for
is as much slower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reeltag.pipeline.executor import Stage, critical_paths
from reeltag.pipeline.simulation.machines import Machines
from reeltag.pipeline.stages.gpu_hours import FLOPS_A_SECOND

HOUR = 3600.0


@dataclass(frozen=True)
class Task:
    """A stage on machines.

    Attributes:
        name: of the stage.
        inputs: names of the tasks that come before.
        seconds: that it takes where reading holds nothing up.
        bytes: that it reads, evenly over its time.
        devices: that it takes.
        computing: seconds of one device that are arithmetic.
    """

    name: str
    inputs: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: float = 0.0
    devices: int = 1
    computing: float = 0.0

    @property
    def asks(self) -> float:
        """Bytes a second that it reads where nothing holds it up."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Schedule:
    """When everything runs.

    Attributes:
        spans: start and end of each task, in seconds.
        peak: most bytes a second that a node reads.
    """

    spans: Mapping[str, tuple[float, float]]
    peak: float

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return max((end for _, end in self.spans.values()), default=0.0)


@dataclass
class _Running:
    task: Task
    nodes: tuple[int, ...]  # of each of its devices
    begin: float
    left: float  # seconds, where nothing holds it up

    def asked_of(self, node: int) -> float:
        return self.task.asks * self.nodes.count(node) / len(self.nodes)


def stage_tasks(stages: Sequence[Stage], machines: Machines, video_bytes: int, gpus: int) -> list[Task]:
    """Tasks of the stages on given machines.

    Args:
        stages: of a plan.
        machines: where they run.
        video_bytes: of a video.
        gpus: that there are; a training that would be shared by more is shared by all.
    """
    return [_task(stage, machines, video_bytes, min(stage.processes, gpus)) for stage in stages]


def _task(stage: Stage, machines: Machines, video_bytes: int, devices: int) -> Task:
    traffic = stage.traffic
    read = traffic.videos * video_bytes + traffic.targets
    computing = stage.gpu_hours * HOUR * FLOPS_A_SECOND / (machines.tflops * 1e12)
    seconds = computing / devices + traffic.steps * all_reduce_seconds(traffic.weights, devices, machines)
    if not computing:  # one process reads
        seconds = read / (machines.load_gb_s * 1e9)
    return Task(stage.name, stage.inputs, seconds, read, devices, computing)


def all_reduce_seconds(weights: int, devices: int, machines: Machines) -> float:
    """Seconds a step in which devices add up their gradients, each sending 2(n−1)/n of them over the slowest link."""
    inside = devices <= machines.gpus
    rate = machines.link_gb_s if inside else min(machines.link_gb_s, machines.network_gb_s)
    return 2 * (devices - 1) / devices * 4 * weights / (rate * 1e9)


def alone(task: Task, gpus: int, data_rate: float) -> float:
    """Seconds of a task that has its nodes to itself.

    Args:
        task: the task.
        gpus: of a node.
        data_rate: bytes a second that a node can read.
    """
    share = min(task.devices, gpus) / task.devices  # of the fullest of its nodes
    return max(task.seconds, task.bytes * share / data_rate)


def critical_path(tasks: Sequence[Task], seconds: Mapping[str, float]) -> list[str]:
    """The longest chain of tasks that wait for each other; each of the tasks comes after its inputs."""
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for task in tasks:
        latest = before[task.name] = max(task.inputs, key=ends.__getitem__, default=None)
        ends[task.name] = seconds[task.name] + (ends[latest] if latest else 0.0)
    path, last = [], max(ends, key=ends.__getitem__, default=None)
    while last is not None:
        path.append(last)
        last = before[last]
    return path[::-1]


def schedule(tasks: Sequence[Task], shape: Sequence[int], data_rate: float = math.inf) -> Schedule:
    """Schedule tasks on nodes.

    Args:
        tasks: each after its inputs; none takes more devices than there are.
        shape: devices of each node, all alike but the last, which may have fewer.
        data_rate: bytes a second that a node can read.
    """
    urgency = critical_paths(tasks, {task.name: alone(task, max(shape), data_rate) for task in tasks})
    queue = sorted(tasks, key=lambda task: -urgency[task.name])  # stable: the plan's order among equals
    spans: dict[str, tuple[float, float]] = {}
    running: list[_Running] = []
    now, peak = 0.0, 0.0
    while queue or running:
        for task in [task for task in queue if all(name in spans for name in task.inputs)]:
            if nodes := _place(task, shape, running):
                running.append(_Running(task, nodes, now, task.seconds))
                queue.remove(task)
        speeds, most = _speeds(running, len(shape), data_rate)
        left = [each.left / speed for each, speed in zip(running, speeds, strict=True)]
        step = min(left)
        now, peak = now + step, max(peak, most if step else 0.0)
        spans |= {e.task.name: (e.begin, now) for e, seconds in zip(running, left, strict=True) if seconds <= step}
        for each, speed in zip(running, speeds, strict=True):
            each.left -= speed * step
        running = [each for each in running if each.task.name not in spans]
    return Schedule(spans, peak)


def _place(task: Task, shape: Sequence[int], running: Sequence[_Running]) -> tuple[int, ...]:
    """The node of each device, those that read least first; nothing while too few are free.

    A task is spread over several nodes only where one has not enough devices, and then over whole ones.
    """
    free = [size - sum(each.nodes.count(node) for each in running) for node, size in enumerate(shape)]
    idlest = sorted(range(len(shape)), key=lambda node: sum(each.asked_of(node) for each in running))
    whole, rest = divmod(task.devices, max(shape))
    nodes: list[int] = []
    for size in [max(shape)] * whole + [rest] * bool(rest):
        fitting = [node for node in idlest if node not in nodes and free[node] >= size]
        if not fitting:
            return ()
        nodes += fitting[:1] * size
    return tuple(nodes)


def _speeds(running: Sequence[_Running], nodes: int, data_rate: float) -> tuple[list[float], float]:
    """Return the speed of each task, from 0 to 1, and the highest read rate of a node."""
    speeds = [1.0] * len(running)
    asked = [{number: ask for number, each in enumerate(running) if (ask := each.asked_of(n))} for n in range(nodes)]
    for asks in asked:
        for number, share in fair_shares(asks, data_rate).items():
            speeds[number] = min(speeds[number], share / asks[number])
    return speeds, max(sum(ask * speeds[number] for number, ask in asks.items()) for asks in asked)


def fair_shares(asks: Mapping[int, float], rate: float) -> dict[int, float]:
    """Divide a rate: who asks for less than an equal part gets it, and the others share the rest."""
    shares: dict[int, float] = {}
    for number in sorted(asks, key=asks.__getitem__):
        shares[number] = min(asks[number], rate / (len(asks) - len(shares)))
        rate -= shares[number]
    return shares
