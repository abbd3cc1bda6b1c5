"""Where stages run, and whether they need to. A stage is a pure function of hashed inputs.

Each stage has a folder `stages/NAME-HASH`, where the hash covers its parameters, its inputs and the
version of reeltag. The marker `stage.json` is written last, so a folder without one is unfinished
work; a stage may pick up what an interrupted run left in it. Nothing is ever overwritten by another
recipe, so going back to an earlier one redoes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reeltag import __version__
from reeltag.distributed import launch, world_size
from reeltag.errors import UsageError
from reeltag.progress import Progress
from reeltag.storage import (
    content_hash,
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


def run(stages: Sequence[Stage], out: Path, progress: Progress) -> dict[str, Path]:
    """Run what is missing, in order.

    Args:
        stages: each after its inputs.
        out: folder of the run.
        progress: told of each stage.

    Returns:
        The folder of each stage.

    Raises:
        UsageError: the disk has no room for what is missing.
    """
    _check_room(stages, out)
    folders: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for number, stage in enumerate(stages, 1):
        folder = _folder(stage, out, digests)
        marker = folder / MARKER
        title = f"[{number}/{len(stages)}] {stage.name}"
        if marker.exists():
            progress.say(f"{title}: done before")
        else:
            progress.say(title)
            make_folder(folder)
            remove_partials(folder)
            begin = time.perf_counter()
            job = Job(folder, {name: folders[name] for name in stage.inputs}, progress)
            shared = stage.processes > 1 and world_size() == 1
            digest = (launch(partial(stage.work, job), stage.processes) if shared else stage.work(job)) or folder.name
            seconds = round(time.perf_counter() - begin, 1)
            write_json(marker, {"digest": digest, "parameters": stage.parameters, "seconds": seconds})
        folders[stage.name] = folder
        digests[stage.name] = _digest(marker)
    return folders


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
