"""Read the parts of a source in several processes, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from reeltag.core.distributed.process_pool import Resources, open_process_pool
from reeltag.core.errors import DataError
from reeltag.data.sources.videos import Source, SourceVideo, StoredLabels

TASK_PARTS = 64  # most parts that a process reads at a time

Numbered = tuple[int, int, SourceVideo]  # index of the part, index in the part, and the video


@dataclass(frozen=True)
class _Spooled:
    """A video whose values lie in a file, one feature after the other."""

    part: int
    number: int
    id: str
    labels: StoredLabels | None
    place: str
    features: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype and shape


def read_parts(source: Source, parts: Sequence[str], workers: int, folder: Path) -> Iterator[Numbered]:
    """Yield the videos of some parts in order.

    Args:
        source: of the parts.
        parts: names of the parts.
        workers: number of processes that read; 1 for this process.
        folder: for the values that pass from process to process.

    Raises:
        DataError: a video that cannot be read or trusted.
        WorkerError: a process was killed.
    """
    size = max(1, min(TASK_PARTS, len(parts) // (4 * workers)))
    numbered = list(enumerate(parts))
    tasks = [numbered[begin : begin + size] for begin in range(0, len(numbered), size)]
    if workers == 1 or len(tasks) == 1:
        yield from _read(source, numbered)
        return
    names = (folder / f".values-{number}.partial" for number in count())
    waiting: deque[tuple[Path, Future[list[_Spooled]]]] = deque()
    with open_process_pool(["cpu"] * min(workers, len(tasks))) as pool:
        for task in tasks:
            path = next(names)
            waiting.append((path, pool.submit(Resources(), _spool, source, task, path)))
            if len(waiting) > 2 * workers:
                yield from _unspool(*waiting.popleft())
        while waiting:
            yield from _unspool(*waiting.popleft())


def _read(source: Source, parts: Sequence[tuple[int, str]]) -> Iterator[Numbered]:
    for part, name in parts:
        for number, video in enumerate(source.read(name)):
            yield part, number, video


def _spool(source: Source, parts: Sequence[tuple[int, str]], path: Path) -> list[_Spooled]:
    """Write the values of videos to a file, and return all else."""
    videos = []
    try:
        with path.open("wb") as file:
            for part, number, video in _read(source, parts):
                for array in video.features.values():
                    array.tofile(file)
                features = tuple((name, array.dtype.str, array.shape) for name, array in video.features.items())
                videos.append(_Spooled(part, number, video.id, video.labels, video.place, features))
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror or error}); make room", file=str(path)) from error
    return videos


def _unspool(path: Path, future: Future[list[_Spooled]]) -> Iterator[Numbered]:
    videos = future.result()
    with path.open("rb") as file:
        for each in videos:
            features = {
                name: np.fromfile(file, dtype, int(np.prod(shape))).reshape(shape)
                for name, dtype, shape in each.features
            }
            yield each.part, each.number, SourceVideo(each.id, features, each.labels, each.place)
    path.unlink()
