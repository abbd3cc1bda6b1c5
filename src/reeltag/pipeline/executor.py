"""Where stages run, and whether they need to. A stage is a pure function of hashed inputs.

Each stage has a folder `stages/NAME-HASH`, where the hash covers its parameters, its inputs and the
version of reeltag. The marker `stage.json` is written last, so a folder without one is unfinished
work; a stage may pick up what an interrupted run left in it. Nothing is ever overwritten by another
recipe, so going back to an earlier one redoes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from reeltag.core.distributed.process_group import broadcast, launch, rank, world_size
from reeltag.core.distributed.process_pool import PROCESS_BYTES, Needs, Pool
from reeltag.core.errors import UsageError
from reeltag.core.interrupts import raise_on_sigterm
from reeltag.core.progress import Progress
from reeltag.core.storage import content_hash, free_bytes, make_folder, remove_partials
from reeltag.core.text import counted, megabytes
from reeltag.core.version import __version__
from reeltag.pipeline.run_folder import Outputs, outputs_at


@dataclass(frozen=True)
class Job:
    """What a stage gets to work with.

    Attributes:
        folder: where its output goes.
        inputs: folders of the finished stages that it named, by name.
        progress: to tell people.
    """

    folder: Path
    inputs: Mapping[str, Path]
    progress: Progress


@dataclass(frozen=True)
class Pieces:
    """What a stage falls apart into: tasks that may run side by side, before the rest of it.

    Attributes:
        count: of them, known when the stage's inputs are there.
        file: that one leaves, whole; where it is there, the piece is done.
        work: makes one.
    """

    count: Callable[[Job], int]
    file: Callable[[int], str]
    work: Callable[[Job, int], None]


@dataclass(frozen=True)
class Traffic:
    """What a stage reads, and what its devices would have to tell each other; estimated.

    Attributes:
        videos: that it reads, each as often as it does.
        targets: bytes of soft targets that it reads.
        steps: of a training.
        weights: of the model that is trained.
    """

    videos: float = 0.0
    targets: float = 0.0
    steps: int = 0
    weights: int = 0


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: unique in a plan, such as `train.netvlad-a`.
        work: makes the output; may return a hash of it that stands for it in later stages' hashes, by
            default the hash of what it was made from.
        inputs: names of stages that come before.
        parameters: JSON of all else that decides the output.
        note: for the plan, such as sizes.
        gpu_hours: estimated, for the plan.
        bytes: that it leaves, estimated; 0 where it is little.
        processes: that share the work; each does it and knows its rank.
        traffic: what it reads.
        processors: that each process keeps busy.
        gpus: that each computes on, where there are any.
        pieces: that come before `work`.
    """

    name: str
    work: Callable[[Job], str | None]
    inputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    gpu_hours: float = 0.0
    bytes: int = 0
    processes: int = 1
    traffic: Traffic = Traffic()
    processors: int = 1
    gpus: int = 0
    pieces: Pieces | None = None

    @property
    def needs(self) -> Needs:
        """What each of its processes takes of a machine; what it leaves is in memory about twice."""
        return Needs(self.processors, self.gpus, PROCESS_BYTES + 2 * self.bytes, self.processes)


def run(stages: Sequence[Stage], out: Path | str, progress: Progress, pool: Pool | None = None) -> dict[str, Path]:
    """Run what is missing, each stage once its inputs are there.

    Args:
        stages: each after its inputs.
        out: path or URL of the run.
        progress: told of each stage.
        pool: where stages run side by side; by default one after the other in this process.

    Returns:
        The folder of each stage.

    Raises:
        UsageError: the disk has no room for what is missing.
    """
    outputs = outputs_at(out)
    _check_room(stages, outputs)
    return _Run(stages, outputs, progress, pool).folders()


class _Run:
    """Stages on their way; each begins once its inputs are there, that with the most behind it first."""

    def __init__(self, stages: Sequence[Stage], outputs: Outputs, progress: Progress, pool: Pool | None) -> None:
        self.stages, self.outputs, self.progress, self.pool = list(stages), outputs, progress, pool
        self._titles = {stage.name: f"[{n}/{len(stages)}] {stage.name}" for n, stage in enumerate(stages, 1)}
        self._folders: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self._running: dict[Future[Any], tuple[Stage, int | None]] = {}

    def folders(self) -> dict[str, Path]:
        """The folder of each stage, when all are done."""
        left = list(self.stages)
        if self.pool is not None:
            ways = ways_to_the_end(left, {stage.name: stage.gpu_hours for stage in left})
            left.sort(key=lambda stage: -ways[stage.name])
        while left or self._running:
            ready = next((stage for stage in left if all(name in self._digests for name in stage.inputs)), None)
            if ready is not None:
                left.remove(ready)
                self._begin(ready)
            else:
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._go_on(*self._running.pop(future), future.result())
        return {stage.name: self.outputs.folder(self._folders[stage.name]) for stage in self.stages}

    def _begin(self, stage: Stage) -> None:
        self._folders[stage.name] = folder = _folder(stage, self._digests)
        if marker := broadcast(self._ready(folder) if rank() == 0 else None):
            self.progress.say(f"{self._titles[stage.name]}: done before")
            self._digests[stage.name] = marker["digest"]
            return
        self.progress.say(self._titles[stage.name])
        if self.pool is None:
            self._digests[stage.name] = self._task(stage, self.progress).here()
        elif left := self._task(stage, self.progress).pieces_left():
            for number in left:
                self._submit(stage, number)
        else:
            self._submit(stage, None)

    def _ready(self, stage: str) -> dict[str, Any] | None:
        """The marker of a stage, or None and its folder made ready."""
        if (marker := self.outputs.marker(stage)) is None:
            make_folder(self.outputs.folder(stage))
            remove_partials(self.outputs.folder(stage))
        return marker

    def _submit(self, stage: Stage, piece: int | None) -> None:
        assert self.pool is not None
        task = self._task(stage, self.progress.labelled(stage.name))
        self._running[self.pool.submit(stage.needs, task.elsewhere, piece)] = stage, piece

    def _go_on(self, stage: Stage, piece: int | None, digest: str) -> None:
        """What comes after a task: the rest of the stage after its last piece, or its end."""
        if piece is None:
            self._digests[stage.name] = digest
            done = f"{len(self._digests)} of {counted(len(self.stages), 'stage')}"
            self.progress.say(f"{self._titles[stage.name]}: done, {done}")
        elif all(each is not stage for each, _ in self._running.values()):
            self._submit(stage, None)

    def _task(self, stage: Stage, progress: Progress) -> _Task:
        inputs = {name: self._folders[name] for name in stage.inputs}
        return _Task(stage, self._folders[stage.name], inputs, self.outputs, progress)


@dataclass(frozen=True)
class _Task:
    """A stage whose inputs are there, in whatever process."""

    stage: Stage
    folder: str
    inputs: Mapping[str, str]
    outputs: Outputs
    progress: Progress

    def here(self) -> str:
        """Do all of it in this process, and mark it as finished; returns its digest.

        Of several processes that were started together the first does what is not for all.
        """
        return broadcast(self._all() if rank() == 0 or self.stage.processes > 1 else "")

    def _all(self) -> str:
        with self._at_work(leftovers=True) as job:
            if self.stage.pieces is not None:
                count, left = self.stage.pieces.count(job), self._missing(job, self.outputs.files(self.folder))
                with job.progress.task(self.stage.name, count, "pieces") as task:
                    task.resume_at(count - len(left))
                    for number in left:
                        self.stage.pieces.work(job, number)
                        task.advance(1)
            digest, seconds = self._rest(job)
        return self._finish(digest, seconds)

    def pieces_left(self) -> list[int]:
        """Those that are to be done before the rest."""
        if self.stage.pieces is None:
            return []
        for folder in self.inputs.values():
            self.outputs.bring(folder)
        return self._missing(self._job(), self.outputs.files(self.folder))

    def elsewhere(self, piece: int | None) -> str:
        """Do a piece, or what is left to do when all are there; returns the digest then."""
        with raise_on_sigterm():
            with self._at_work(leftovers=piece is None) as job:
                if piece is not None:
                    assert self.stage.pieces is not None
                    self.stage.pieces.work(job, piece)
                    return ""
                digest, seconds = self._rest(job)
            return self._finish(digest, seconds)

    def _rest(self, job: Job) -> tuple[str, float]:
        begin, work = time.perf_counter(), partial(self.stage.work, job)
        shared = self.stage.processes > 1 and world_size() == 1
        digest = launch(work, self.stage.processes) if shared else work()
        return digest or self.folder, round(time.perf_counter() - begin, 1)

    def _finish(self, digest: str, seconds: float) -> str:
        if rank() == 0:
            content = {"digest": digest, "parameters": self.stage.parameters, "seconds": seconds}
            self.outputs.finish(self.folder, content)
        return digest

    @contextmanager
    def _at_work(self, *, leftovers: bool) -> Iterator[Job]:
        with self.outputs.at_work(self.folder, self.inputs.values(), leftovers=leftovers):
            yield self._job()

    def _missing(self, job: Job, there: set[str]) -> list[int]:
        assert self.stage.pieces is not None
        return [n for n in range(self.stage.pieces.count(job)) if self.stage.pieces.file(n) not in there]

    def _job(self) -> Job:
        inputs = {name: self.outputs.folder(folder) for name, folder in self.inputs.items()}
        return Job(self.outputs.folder(self.folder), inputs, self.progress)


class Step(Protocol):
    """Work that waits for other work."""

    @property
    def name(self) -> str:
        """Unique among the steps."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the steps that come before."""


def ways_to_the_end(steps: Sequence[Step], cost: Mapping[str, float]) -> dict[str, float]:
    """Cost of the longest way from the beginning of each step to the end of all; each stands after its inputs."""
    after = dict.fromkeys(cost, 0.0)
    for step in reversed(steps):
        for name in step.inputs:
            after[name] = max(after[name], cost[step.name] + after[step.name])
    return {name: cost[name] + after[name] for name in cost}


def statuses(stages: Sequence[Stage], out: Path | str) -> dict[str, str]:
    """Whether each stage is done, unfinished or still to do, without doing anything."""
    return _statuses(stages, outputs_at(out))


def _statuses(stages: Sequence[Stage], outputs: Outputs) -> dict[str, str]:
    found: dict[str, str] = {}
    digests: dict[str, str] = {}
    for stage in stages:
        if not all(name in digests for name in stage.inputs):
            found[stage.name] = "to do"
            continue
        folder = _folder(stage, digests)
        if marker := outputs.marker(folder):
            digests[stage.name] = marker["digest"]
        found[stage.name] = "done" if marker else "unfinished" if outputs.has_begun(folder) else "to do"
    return found


def _check_room(stages: Sequence[Stage], outputs: Outputs) -> None:
    """Refuse to begin what would fill the disk hours later."""
    needed, free = _bytes_to_do(stages, _statuses(stages, outputs)), free_bytes(outputs.out)
    if needed > free:
        room = f"takes about {megabytes(needed)} more, and {megabytes(free)} are free there"
        raise UsageError(f"{outputs.out}: the run {room}; make room, or choose an --out on another disk")


def _bytes_to_do(stages: Sequence[Stage], done: Mapping[str, str]) -> int:
    """What is still to be written, estimated.

    The largest counts twice: a checkpoint is written beside the one before. Of an unfinished stage all may be there.
    """
    largest = max((stage.bytes for stage in stages if done[stage.name] != "done"), default=0)
    return largest + sum(stage.bytes for stage in stages if done[stage.name] == "to do")


def listing(stages: Sequence[Stage], out: Path | str) -> list[str]:
    """The plan for people, a line a stage: what is done already, sizes, estimated GPU hours."""
    done, width = statuses(stages, out), max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        notes = ", ".join(filter(None, [stage.note, _gpu_time(stage.gpu_hours)]))
        lines.append(f"{done[stage.name]:<10}  {stage.name:<{width}}  {notes}")
    left = sum(stage.gpu_hours for stage in stages if done[stage.name] != "done")
    hours = f"; trainings and soft targets to do: {_gpu_time(left)} at 10 TFLOP/s" if left else ""
    needed = _bytes_to_do(stages, done)
    room = f"; about {megabytes(needed)} of disk to be written" if needed else ""
    lines.append(f"{len(stages)} stages{hours}{room}")
    return [line.rstrip() for line in lines]


def _gpu_time(hours: float) -> str:
    """An estimate for people; empty where there is none."""
    if hours >= 0.1:
        return f"about {hours:.2f} GPU hours"
    return f"about {60 * hours:.1f} GPU minutes" if hours >= 1 / 60 else "under a GPU minute" if hours else ""


def planned(stages: Sequence[Stage], out: Path | str) -> list[dict[str, Any]]:
    """The plan for programs: each stage's name, whether it is done, and what it is estimated to take."""
    done = statuses(stages, out)
    return [
        {"name": stage.name, "status": done[stage.name], "note": stage.note, "gpu_hours": stage.gpu_hours}
        for stage in stages
    ]


def needed_for(targets: Iterable[str], stages: Sequence[Stage]) -> list[Stage]:
    """The targets and all that they build on, in the plan's order."""
    wanted = set(targets)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.inputs)
    return [stage for stage in stages if stage.name in wanted]


def _folder(stage: Stage, digests: Mapping[str, str]) -> str:
    content = [stage.name, stage.parameters, [digests[name] for name in stage.inputs], __version__]
    return f"{stage.name}-{content_hash(content)[:12]}"
