"""Schedule stages once their inputs are ready, longest critical path first. A stage is a pure function of its inputs.

Each stage has a folder `stages/NAME-HASH`, where the hash covers its parameters, its inputs and the format number of
its kind; the version of reeltag is not part of it. The marker `stage.json` is written last, so a folder without one
is unfinished; a stage may resume from the files that an interrupted run left there. Another recipe never overwrites a
folder, so going back to an earlier recipe recomputes nothing.
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
from reeltag.core.distributed.process_pool import PROCESS_BYTES, Pool, Resources
from reeltag.core.environment import cheap_collections, return_unused_memory
from reeltag.core.errors import UsageError
from reeltag.core.interrupts import raise_on_sigterm
from reeltag.core.progress import Progress
from reeltag.core.storage import content_hash, free_bytes, make_folder, remove_partials
from reeltag.core.text import counted, megabytes
from reeltag.pipeline.run_folder import Outputs, outputs_at


@dataclass(frozen=True)
class Job:
    """Inputs and output folder of a stage.

    Attributes:
        folder: for the stage's output.
        inputs: folders of the finished input stages, by name.
        progress: for messages and progress bars.
    """

    folder: Path
    inputs: Mapping[str, Path]
    progress: Progress


@dataclass(frozen=True)
class Pieces:
    """Independent parts of a stage, which may run in parallel before its `work` is called.

    Attributes:
        count: returns the number of pieces, once the stage's inputs are finished.
        file: returns the name of the file that a piece writes atomically; a piece is done when its file exists.
        work: computes one piece.
    """

    count: Callable[[Job], int]
    file: Callable[[int], str]
    work: Callable[[Job, int], None]


@dataclass(frozen=True)
class Traffic:
    """Estimated reading of a stage, and the communication between its devices.

    Attributes:
        videos: number of videos read; a video counts each time it is read.
        targets: bytes of soft targets read.
        steps: training steps, each of which exchanges gradients.
        weights: number of weights of the trained model.
    """

    videos: float = 0.0
    targets: float = 0.0
    steps: int = 0
    weights: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: unique in a plan, such as `train.netvlad-a`.
        work: writes the output; may return a hash of it, which then represents the stage in the hashes of later
            stages. By default the hash of the stage's own inputs does.
        format: number of the stage's kind. Raise it when the kind computes something else than before from the same
            parameters and inputs: stages of an older number are then computed again.
        inputs: names of the stages that it reads.
        parameters: everything else that decides the output, as JSON.
        note: shown in the plan, such as sizes.
        gpu_hours: estimated GPU hours.
        bytes: estimated size of the output without the checkpoint; 0 where it is small.
        checkpoint: name of the file from which the stage resumes, and from which other stages go on; it is removed once
            they all are finished. Empty without one.
        checkpoint_bytes: estimated size of the checkpoint.
        continues: name of the input whose checkpoint the stage goes on from; the other inputs are inputs of that stage
            too. Empty if there is none.
        processes: number of processes that share the work; each calls `work` and knows its rank.
        traffic: estimated reading and communication.
        cores: CPU cores that each process keeps busy.
        gpus: GPUs that each process computes on, where the machine has any.
        pieces: parts that are computed before `work`.
    """

    name: str
    work: Callable[[Job], str | None]
    format: int
    inputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    gpu_hours: float = 0.0
    bytes: int = 0
    checkpoint: str = ""
    checkpoint_bytes: int = 0
    continues: str = ""
    processes: int = 1
    traffic: Traffic = Traffic()
    cores: int = 1
    gpus: int = 0
    pieces: Pieces | None = None

    @property
    def needs(self) -> Resources:
        """Resources of each process; it holds the checkpoint in memory, and its output about twice."""
        memory = PROCESS_BYTES + self.checkpoint_bytes + 2 * self.bytes
        return Resources(self.cores, self.gpus, memory, self.processes)


def run(
    stages: Sequence[Stage],
    out: Path | str,
    progress: Progress,
    pool: Pool | None = None,
    begun: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Path]:
    """Run the stages that are not finished, each once its inputs are.

    Args:
        stages: each after its inputs.
        out: path or URL of the run.
        progress: reports each stage.
        pool: runs stages in parallel; by default they run one after the other in this process.
        begun: called with the folder of each stage when it begins, or was done before.

    Returns:
        The folder of each stage.

    Raises:
        UsageError: the disk has too little room for the missing stages, or another version of reeltag made the run.
    """
    outputs = outputs_at(out)
    if rank() == 0:
        outputs.set_format()
    _check_room(stages, outputs, side_by_side=pool is not None)
    with cheap_collections():
        return _Run(stages, outputs, progress, pool, begun).folders()


class _Run:
    """Progress of a run; of the stages that are ready, the one with the longest critical path starts first."""

    def __init__(
        self,
        stages: Sequence[Stage],
        outputs: Outputs,
        progress: Progress,
        pool: Pool | None,
        begun: Callable[[Path], None],
    ) -> None:
        self.stages, self.outputs, self.progress, self.pool, self.begun = list(stages), outputs, progress, pool, begun
        self._titles = {stage.name: f"[{n}/{len(stages)}] {stage.name}" for n, stage in enumerate(stages, 1)}
        self._folders: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self._running: dict[Future[Any], tuple[Stage, int | None]] = {}

    def folders(self) -> dict[str, Path]:
        """Run all stages and return the folder of each."""
        left = list(self.stages)
        if self.pool is not None:
            lengths = critical_paths(left, {stage.name: stage.gpu_hours for stage in left})
            left.sort(key=lambda stage: -lengths[stage.name])
        while left or self._running:
            ready = next((stage for stage in left if all(name in self._digests for name in stage.inputs)), None)
            if ready is not None:
                left.remove(ready)
                self._begin(ready)
            else:
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._continue(*self._running.pop(future), future.result())
        return {stage.name: self.outputs.folder(self._folders[stage.name]) for stage in self.stages}

    def _begin(self, stage: Stage) -> None:
        self._folders[stage.name] = folder = _folder(stage, self._digests)
        self.begun(self.outputs.folder(folder))
        if marker := broadcast(self._ready(stage, folder) if rank() == 0 else None):
            self.progress.say(f"{self._titles[stage.name]}: done before")
            self._finished(stage, marker["digest"])
            return
        self.progress.say(self._titles[stage.name])
        if self.pool is None:
            self._finished(stage, self._task(stage, self.progress).run_here())
        elif left := self._task(stage, self.progress).pieces_left():
            for index in left:
                self._submit(stage, index)
        else:
            self._submit(stage, None)

    def _ready(self, stage: Stage, folder: str) -> dict[str, Any] | None:
        """Return the marker of a finished stage; otherwise prepare its folder and return None."""
        marker = self.outputs.marker(folder)
        if marker and (later := _lacks_checkpoint(stage, self.stages, self._digests, marker["digest"], self.outputs)):
            why = f"its checkpoint was removed once nothing needed it, and {later} goes on from it"
            self.progress.say(f"{self._titles[stage.name]}: is computed again, because {why}")
            self.outputs.reopen(folder)
            marker = None
        if marker is None:
            make_folder(self.outputs.folder(folder))
            remove_partials(self.outputs.folder(folder))
        return marker

    def _finished(self, stage: Stage, digest: str) -> None:
        """Record a finished stage, and remove the checkpoints that nothing needs any more."""
        self._digests[stage.name] = digest
        for each in self.stages:
            if rank() > 0 or not each.checkpoint or each.name not in (stage.name, stage.continues):
                continue
            if all(later.name in self._digests for later in _continuations(each, self.stages)):
                self.outputs.drop(self._folders[each.name], each.checkpoint)

    def _submit(self, stage: Stage, piece: int | None) -> None:
        assert self.pool is not None
        task = self._task(stage, self.progress.labelled(stage.name))
        self._running[self.pool.submit(stage.needs, task.run_in_worker, piece)] = stage, piece

    def _continue(self, stage: Stage, piece: int | None, digest: str) -> None:
        """Take the result of a task: submit the stage's `work` after its last piece, or record the stage's digest."""
        if piece is None:
            self._finished(stage, digest)
            done = f"{len(self._digests)} of {counted(len(self.stages), 'stage')}"
            self.progress.say(f"{self._titles[stage.name]}: done, {done}")
        elif all(each is not stage for each, _ in self._running.values()):
            self._submit(stage, None)

    def _task(self, stage: Stage, progress: Progress) -> _Task:
        inputs = {name: self._folders[name] for name in stage.inputs}
        return _Task(stage, self._folders[stage.name], inputs, self.outputs, progress)


@dataclass(frozen=True)
class _Task:
    """A stage whose inputs are finished; can be sent to another process."""

    stage: Stage
    folder: str
    inputs: Mapping[str, str]
    outputs: Outputs
    progress: Progress

    def run_here(self) -> str:
        """Run the whole stage in this process, mark it as finished and return its digest.

        Of several processes that were started together, only the first runs a stage for a single process.
        """
        return broadcast(self._all() if rank() == 0 or self.stage.processes > 1 else "")

    def _all(self) -> str:
        with self._at_work(leftovers=True) as job:
            if self.stage.pieces is not None:
                count, left = self.stage.pieces.count(job), self._missing(job, self.outputs.files(self.folder))
                with job.progress.task(self.stage.name, count, "pieces") as task:
                    task.resume_at(count - len(left))
                    for index in left:
                        self.stage.pieces.work(job, index)
                        task.advance(1)
            digest, seconds = self._rest(job)
        return self._finish(digest, seconds)

    def pieces_left(self) -> list[int]:
        """Return the indices of the pieces that are not done yet."""
        if self.stage.pieces is None:
            return []
        for folder in self.inputs.values():
            self.outputs.bring(folder)
        return self._missing(self._job(), self.outputs.files(self.folder))

    def run_in_worker(self, piece: int | None) -> str:
        """Compute a piece and return an empty string; or, for None, call the stage's `work` and return its digest."""
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
        return_unused_memory()
        if rank() == 0:
            content = {"digest": digest, "parameters": self.stage.parameters, "seconds": seconds}
            self.outputs.finish(self.folder, content)
        return digest

    @contextmanager
    def _at_work(self, *, leftovers: bool) -> Iterator[Job]:
        with self.outputs.at_work(self.folder, self.inputs.values(), leftovers=leftovers):
            yield self._job()

    def _missing(self, job: Job, existing: set[str]) -> list[int]:
        assert self.stage.pieces is not None
        return [n for n in range(self.stage.pieces.count(job)) if self.stage.pieces.file(n) not in existing]

    def _job(self) -> Job:
        inputs = {name: self.outputs.folder(folder) for name, folder in self.inputs.items()}
        return Job(self.outputs.folder(self.folder), inputs, self.progress)


class Step(Protocol):
    """A node of a graph of dependent work."""

    @property
    def name(self) -> str:
        """Unique among the steps."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the steps that come before."""


def critical_paths(steps: Sequence[Step], cost: Mapping[str, float]) -> dict[str, float]:
    """Return the cost of the longest path from the start of each step to the end of all steps.

    Args:
        steps: each after its inputs.
        cost: of each step, by name.
    """
    after = dict.fromkeys(cost, 0.0)
    for step in reversed(steps):
        for name in step.inputs:
            after[name] = max(after[name], cost[step.name] + after[step.name])
    return {name: cost[name] + after[name] for name in cost}


def statuses(stages: Sequence[Stage], out: Path | str) -> dict[str, str]:
    """Return the status of each stage: "done", "unfinished" or "to do". Nothing is changed.

    Raises:
        UsageError: another version of reeltag made the run.
    """
    outputs = outputs_at(out)
    outputs.check_format()
    return _statuses(stages, outputs)


def _statuses(stages: Sequence[Stage], outputs: Outputs) -> dict[str, str]:
    found: dict[str, str] = {}
    digests: dict[str, str] = {}
    for stage in stages:
        if not all(name in digests for name in stage.inputs):
            found[stage.name] = "to do"
            continue
        folder = _folder(stage, digests)
        if marker := outputs.marker(folder):
            again = _lacks_checkpoint(stage, stages, digests, marker["digest"], outputs)
            digests[stage.name] = marker["digest"]
            found[stage.name] = "to do" if again else "done"
        else:
            found[stage.name] = "unfinished" if outputs.has_begun(folder) else "to do"
    return found


def _continuations(stage: Stage, stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that go on from a stage's checkpoint."""
    return [each for each in stages if each.continues == stage.name]


def _lacks_checkpoint(
    stage: Stage, stages: Sequence[Stage], digests: Mapping[str, str], digest: str, outputs: Outputs
) -> str:
    """Return the name of an unfinished stage that goes on from the missing checkpoint of a finished one; or "".

    Args:
        stage: the finished stage.
        stages: the plan.
        digests: of the stages before.
        digest: of the finished stage.
        outputs: of the run.
    """
    later = _continuations(stage, stages)
    if not later or outputs.keeps(_folder(stage, digests), stage.checkpoint):
        return ""
    known = {**digests, stage.name: digest}
    return next((each.name for each in later if outputs.marker(_folder(each, known)) is None), "")


def _check_room(stages: Sequence[Stage], outputs: Outputs, *, side_by_side: bool) -> None:
    """Refuse a run that would fill the disk hours later.

    Raises:
        UsageError: the disk has too little room for the missing stages.
    """
    needed = _bytes_to_do(stages, _statuses(stages, outputs), side_by_side=side_by_side)
    free = free_bytes(outputs.out)
    if needed > free:
        room = f"takes about {megabytes(needed)} more, and {megabytes(free)} are free there"
        raise UsageError(f"{outputs.out}: the run {room}; make room, or choose an --out on another disk")


def _bytes_to_do(stages: Sequence[Stage], done: Mapping[str, str], *, side_by_side: bool = False) -> int:
    """Estimate the most bytes that the missing stages take at a time.

    The larger of a stage's output and its checkpoint counts twice while the stage runs, because a file is written
    beside the previous one. An unfinished stage may have written everything already, so only that second file counts.

    Args:
        stages: the plan.
        done: the status of each.
        side_by_side: several stages run at a time, in an order that is not known, so that no checkpoint counts as
            removed.
    """
    most = held = 0
    checkpoints: dict[str, int] = {}  # that a later stage goes on from
    for stage in stages:
        if done[stage.name] == "done":
            continue
        size = stage.bytes + stage.checkpoint_bytes if done[stage.name] == "to do" else 0
        most = max(most, held + size + max(stage.bytes, stage.checkpoint_bytes))
        held += size
        if size and not side_by_side:
            if _continuations(stage, stages):
                checkpoints[stage.name] = stage.checkpoint_bytes
            else:
                held -= stage.checkpoint_bytes
            held -= checkpoints.pop(stage.continues, 0)
    return most


def listing(stages: Sequence[Stage], out: Path | str) -> list[str]:
    """Format the plan for people, one line a stage: its status, sizes and estimated GPU hours."""
    done, width = statuses(stages, out), max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        notes = ", ".join(filter(None, [stage.note, _gpu_time(stage.gpu_hours)]))
        lines.append(f"{done[stage.name]:<10}  {stage.name:<{width}}  {notes}")
    left = sum(stage.gpu_hours for stage in stages if done[stage.name] != "done")
    hours = f"; trainings and soft targets to do: {_gpu_time(left)} at 10 TFLOP/s" if left else ""
    needed = _bytes_to_do(stages, done)
    room = f"; about {megabytes(needed)} of disk needed" if needed else ""
    lines.append(f"{len(stages)} stages{hours}{room}")
    return [line.rstrip() for line in lines]


def _gpu_time(hours: float) -> str:
    """Format estimated GPU hours; empty for 0."""
    if hours >= 0.1:
        return f"about {hours:.2f} GPU hours"
    return f"about {60 * hours:.1f} GPU minutes" if hours >= 1 / 60 else "under a GPU minute" if hours else ""


def planned(stages: Sequence[Stage], out: Path | str) -> list[dict[str, Any]]:
    """Return the plan for programs: name, status, note and estimated GPU hours of each stage."""
    done = statuses(stages, out)
    return [
        {"name": stage.name, "status": done[stage.name], "note": stage.note, "gpu_hours": stage.gpu_hours}
        for stage in stages
    ]


def needed_for(targets: Iterable[str], stages: Sequence[Stage]) -> list[Stage]:
    """Return the target stages and all stages that they depend on, in the plan's order."""
    wanted = set(targets)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.inputs)
    return [stage for stage in stages if stage.name in wanted]


def _folder(stage: Stage, digests: Mapping[str, str]) -> str:
    content = [stage.name, stage.parameters, [digests[name] for name in stage.inputs], stage.format]
    return f"{stage.name}-{content_hash(content)[:12]}"
