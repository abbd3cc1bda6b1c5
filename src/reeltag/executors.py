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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from reeltag import __version__
from reeltag.distributed import launch, world_size
from reeltag.errors import UsageError
from reeltag.interrupts import ended_by_sigterm
from reeltag.processes import PROCESS_BYTES, Needs, Pool
from reeltag.progress import LabelledProgress, Progress
from reeltag.storage import (
    content_hash,
    counted,
    free_bytes,
    locked,
    make_folder,
    megabytes,
    read_json,
    remove_partials,
    write_json,
)

MARKER = "stage.json"


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
        work: makes one, whole or not at all; what an interrupted run left of it may be kept.
    """

    count: Callable[[Job], int]
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


def run(stages: Sequence[Stage], out: Path, progress: Progress, pool: Pool | None = None) -> dict[str, Path]:
    """Run what is missing, each stage once its inputs are there.

    Args:
        stages: each after its inputs.
        out: folder of the run.
        progress: told of each stage.
        pool: where stages run side by side; by default one after the other in this process.

    Returns:
        The folder of each stage.

    Raises:
        UsageError: the disk has no room for what is missing.
    """
    _check_room(stages, out)
    return _Run(stages, out, progress, pool).folders()


class _Run:
    """Stages on their way; each begins once its inputs are there, that with the most behind it first."""

    def __init__(self, stages: Sequence[Stage], out: Path, progress: Progress, pool: Pool | None) -> None:
        self.stages, self.out, self.progress, self.pool = {stage.name: stage for stage in stages}, out, progress, pool
        self._titles = {stage.name: f"[{n}/{len(stages)}] {stage.name}" for n, stage in enumerate(stages, 1)}
        self._folders: dict[str, Path] = {}
        self._digests: dict[str, str] = {}
        self._begun: dict[str, float] = {}
        self._running: dict[Future[Any], tuple[Stage, int | None]] = {}

    def folders(self) -> dict[str, Path]:
        """The folder of each stage, when all are done."""
        left = list(self.stages.values())
        if self.pool is not None:
            behind = hours_behind(left)
            left.sort(key=lambda stage: -behind[stage.name])
        while left or self._running:
            ready = next((stage for stage in left if all(name in self._digests for name in stage.inputs)), None)
            if ready is not None:
                left.remove(ready)
                self._begin(ready)
            else:
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._go_on(*self._running.pop(future), future.result())
        return {name: self._folders[name] for name in self.stages}

    def _begin(self, stage: Stage) -> None:
        folder = self._folders[stage.name] = _folder(stage, self.out, self._digests)
        if (folder / MARKER).exists():
            self.progress.say(f"{self._titles[stage.name]}: done before")
            self._digests[stage.name] = _digest(folder / MARKER)
            return
        self.progress.say(self._titles[stage.name])
        make_folder(folder)
        remove_partials(folder)
        self._begun[stage.name] = time.perf_counter()
        job = self._job(stage, self.progress)
        if self.pool is None:
            self._finish(stage, _work(stage, job))
        elif stage.pieces is None:
            self._submit(stage, None)
        else:
            for number in range(stage.pieces.count(job)):
                self._submit(stage, number)

    def _submit(self, stage: Stage, piece: int | None) -> None:
        assert self.pool is not None
        job = self._job(stage, LabelledProgress(stage.name))
        self._running[self.pool.submit(stage.needs, _work_elsewhere, stage, job, piece)] = stage, piece

    def _go_on(self, stage: Stage, piece: int | None, result: str | None) -> None:
        """What comes after a task: the rest of the stage after its last piece, or its end."""
        if piece is None:
            self._finish(stage, result)
        elif all(each is not stage for each, _ in self._running.values()):
            self._submit(stage, None)

    def _job(self, stage: Stage, progress: Progress) -> Job:
        return Job(self._folders[stage.name], {name: self._folders[name] for name in stage.inputs}, progress)

    def _finish(self, stage: Stage, result: str | None) -> None:
        folder, seconds = self._folders[stage.name], round(time.perf_counter() - self._begun[stage.name], 1)
        digest = self._digests[stage.name] = result or folder.name
        write_json(folder / MARKER, {"digest": digest, "parameters": stage.parameters, "seconds": seconds})
        if self.pool is not None:
            done = f"{len(self._digests)} of {counted(len(self.stages), 'stage')}"
            self.progress.say(f"{self._titles[stage.name]}: done in {seconds:.0f} s; {done}")


def _work(stage: Stage, job: Job) -> str | None:
    """All of a stage, in this process or those that it starts."""
    if stage.pieces is not None:
        count = stage.pieces.count(job)
        with job.progress.task(stage.name, count, "pieces") as task:
            for number in range(count):
                stage.pieces.work(job, number)
                task.advance(1)
    if stage.processes > 1 and world_size() == 1:
        return launch(partial(stage.work, job), stage.processes)
    return stage.work(job)


def _work_elsewhere(stage: Stage, job: Job, piece: int | None) -> str | None:
    """A piece of a stage, or what is left to do when all are there; in a process of a pool."""
    with ended_by_sigterm():
        if piece is None:
            return _work(replace(stage, pieces=None), job)
        assert stage.pieces is not None
        stage.pieces.work(job, piece)
    return None


def hours_behind(stages: Sequence[Stage]) -> dict[str, float]:
    """Estimated GPU hours of the longest way from the beginning of each stage to the end of the run."""
    own = {stage.name: stage.gpu_hours for stage in stages}
    behind = dict(own)
    for stage in reversed(stages):
        for name in stage.inputs:
            behind[name] = max(behind[name], own[name] + behind[stage.name])
    return behind


def statuses(stages: Sequence[Stage], out: Path) -> dict[str, str]:
    """Whether each stage is done, unfinished or still to do, without doing anything."""
    found: dict[str, str] = {}
    digests: dict[str, str] = {}
    for stage in stages:
        if not all(name in digests for name in stage.inputs):
            found[stage.name] = "to do"
            continue
        folder = _folder(stage, out, digests)
        if (folder / MARKER).exists():
            digests[stage.name] = _digest(folder / MARKER)
        found[stage.name] = "done" if stage.name in digests else "unfinished" if folder.exists() else "to do"
    return found


def _check_room(stages: Sequence[Stage], out: Path) -> None:
    """Refuse to begin what would fill the disk hours later."""
    needed, free = _bytes_to_do(stages, statuses(stages, out)), free_bytes(out)
    if needed > free:
        room = f"takes about {megabytes(needed)} more, and {megabytes(free)} are free there"
        raise UsageError(f"{out}: the run {room}; make room, or choose an --out on another disk")


def _bytes_to_do(stages: Sequence[Stage], done: Mapping[str, str]) -> int:
    """What is still to be written, estimated.

    The largest counts twice: a checkpoint is written beside the one before. Of an unfinished stage all may be there.
    """
    largest = max((stage.bytes for stage in stages if done[stage.name] != "done"), default=0)
    return largest + sum(stage.bytes for stage in stages if done[stage.name] == "to do")


def listing(stages: Sequence[Stage], out: Path) -> list[str]:
    """The plan for people, a line a stage: what is done already, sizes, estimated GPU hours."""
    done, width = statuses(stages, out), max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        hours = f"{stage.gpu_hours:.2f} GPU h" if stage.gpu_hours >= 0.005 else ""
        lines.append(f"{done[stage.name]:<10}  {stage.name:<{width}}  {', '.join(filter(None, [stage.note, hours]))}")
    left = sum(stage.gpu_hours for stage in stages if done[stage.name] != "done")
    hours = f"; trainings and soft targets to do: about {left:.2f} GPU hours at 10 TFLOP/s" if left >= 0.005 else ""
    needed = _bytes_to_do(stages, done)
    room = f"; about {megabytes(needed)} of disk to be written" if needed else ""
    lines.append(f"{len(stages)} stages{hours}{room}")
    return [line.rstrip() for line in lines]


def needed_for(targets: Iterable[str], stages: Sequence[Stage]) -> list[Stage]:
    """The targets and all that they build on, in the plan's order."""
    wanted = set(targets)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.inputs)
    return [stage for stage in stages if stage.name in wanted]


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep a run's folder, which is new or was made by a run, to this process, and make it ready.

    Raises:
        UsageError: it holds something else, or another process works in it.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "stages").is_dir():
        raise UsageError(f"{out}: is not empty and holds no reeltag run; choose another --out")
    make_folder(out / "stages")
    with locked(out):
        remove_partials(out)
        yield


def _digest(marker: Path) -> str:
    """What a finished stage's output stands for.

    Raises:
        UsageError: the marker is damaged.
    """
    found = read_json(marker)
    if not isinstance(found, dict) or not isinstance(digest := found.get("digest"), str):
        raise UsageError(f"{marker}: is damaged; remove {marker.parent}, and the stage is done again")
    return digest


def _folder(stage: Stage, out: Path, digests: Mapping[str, str]) -> Path:
    content = [stage.name, stage.parameters, [digests[name] for name in stage.inputs], __version__]
    return out / "stages" / f"{stage.name}-{content_hash(content)[:12]}"
