"""Dynamic batching: a queue of requests, and models that each compute some of those that wait as one batch.

The queue belongs to the event loop, so it needs no locks. An idle model computes a request at once; requests that
arrive while all models compute form the next batches.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from reeltag.core.errors import RequestError
from reeltag.data.formats.example import Video
from reeltag.inference.timeline import ScoreArray

_PAUSE, _MOST = 0.002, 0.02  # gathering ends after this many idle seconds without a request, and after this many in all
_WAIT = 0.25  # of the seconds of the last batch that gathering may take
_PATIENCE = 0.1  # seconds that a request waits before the service checks that its client is still connected


class Model(Protocol):
    """Model that computes one batch at a time, beside the event loop."""

    @property
    def deaths(self) -> int:
        """Number of processes that ended while they were needed."""

    async def tag(self, videos: Sequence[Video]) -> ScoreArray:
        """Return the probabilities [B, C] of B videos.

        Raises:
            RequestError: the videos cannot be computed now.
        """


@dataclass(eq=False)
class _Job:
    """Videos of a request, some of which may have been taken or computed already."""

    videos: Sequence[Video]
    scores: ScoreArray
    left: Callable[[], Awaitable[bool]]
    done: asyncio.Future[None]
    since: float = field(default_factory=time.monotonic)
    taken: int = 0
    missing: int = 0


_Part = tuple[_Job, int, int]  # request, first video, and the video after the last


class Batcher:
    """Computes the videos of concurrent requests in batches.

    Args:
        models: of the same weights; each computes batches of its own.
        classes: number of classes.
        max_batch: maximum number of videos per batch.
        observe: called with the number of videos of each batch.
    """

    def __init__(self, models: Sequence[Model], classes: int, max_batch: int, observe: Callable[[int], None]) -> None:
        self._classes, self._max_batch, self._observe = classes, max_batch, observe
        self._count, self._free = len(models), list(models)
        self._waiting: deque[_Job] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._computing = 0  # number of requests in the batches that are computed now
        self._gathering: dict[asyncio.Event, int] = {}  # the number of requests that each waits for

    @property
    def waiting(self) -> int:
        """Number of requests with videos that are still to be computed."""
        return len(self._waiting)

    async def tag(self, videos: Sequence[Video], deadline: float, left: Callable[[], Awaitable[bool]]) -> ScoreArray:
        """Return the probabilities [N, C] of the videos of a request.

        Args:
            videos: N valid videos, at least one.
            deadline: time of the event loop's clock at which the request times out.
            left: returns True once the client has disconnected.

        Raises:
            RequestError: the deadline has passed, the client has disconnected, or the model's processes ended.
        """
        loop = asyncio.get_running_loop()
        scores = np.empty((len(videos), self._classes), np.float32)
        job = _Job(videos, scores, left, loop.create_future(), missing=len(videos))
        timer = loop.call_at(deadline, self._end, [job], RequestError(504, "not answered in time; try again later"))
        self._waiting.append(job)
        for gathered, expected in self._gathering.items():
            if len(self._waiting) >= expected:
                gathered.set()
        self._run_free_model()
        try:
            await job.done
        finally:
            timer.cancel()
            if job in self._waiting:
                self._waiting.remove(job)
        return scores

    def _run_free_model(self) -> None:
        if self._waiting and self._free:
            task = asyncio.create_task(self._run(self._free.pop()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, model: Model) -> None:
        try:
            most = self._share(len(self._waiting))
            while parts := self._next_parts(most):
                self._run_free_model()  # if there are more
                begin = time.monotonic()
                self._computing += len(parts)
                await self._tag_parts(model, parts)
                self._computing -= len(parts)
                most = self._share(len(self._waiting) + len(parts))
                if len(parts) > 1:
                    await self._gather(most, min(_MOST, _WAIT * (time.monotonic() - begin)))
                await self._drop_left()
        finally:
            self._free.append(model)

    async def _tag_parts(self, model: Model, parts: Sequence[_Part]) -> None:
        videos = [video for job, begin, end in parts for video in job.videos[begin:end]]
        self._observe(len(videos))
        try:
            scores = await self._compute(model, videos)
        except Exception as error:  # every request of the batch reports it
            self._end([job for job, _, _ in parts], error)
            return
        for job, begin, end in parts:
            job.scores[begin:end], scores = scores[: end - begin], scores[end - begin :]
            job.missing -= end - begin
            if not job.missing and not job.done.done():
                job.done.set_result(None)

    def _next_parts(self, most: int) -> list[_Part]:
        """Take the next batch: from each request in turn as many videos as fit; unfinished requests queue again.

        Args:
            most: maximum number of requests.
        """
        parts: list[_Part] = []
        room = self._max_batch
        for job in list(self._waiting)[:most]:
            if not room:
                break
            begin, end = job.taken, min(len(job.videos), job.taken + room)
            room -= end - begin
            job.taken = end
            parts.append((job, begin, end))
            self._waiting.popleft()
            if end < len(job.videos):
                self._waiting.append(job)
        return parts

    async def _gather(self, expected: int, most: float) -> None:
        """Wait before the next batch for new requests of the clients that were just answered, while they keep arriving.

        A larger batch costs less per video. After a batch of a single request there is no wait.

        Args:
            expected: number of requests that end the wait.
            most: seconds to wait at most.
        """
        gathered, idle, begin = asyncio.Event(), False, time.monotonic()
        self._gathering[gathered] = expected
        while len(self._waiting) < expected and not idle and (left := begin + most - time.monotonic()) > 0:
            count, before = len(self._waiting), time.monotonic()
            try:
                await asyncio.wait_for(gathered.wait(), min(_PAUSE, left))
            except asyncio.TimeoutError:
                idle = len(self._waiting) == count and time.monotonic() - before < 2 * _PAUSE
        del self._gathering[gathered]

    def _share(self, waiting: int) -> int:
        """Return how many requests a batch takes, so that all models get as many, and HTTP as well.

        While the models compute, the requests of one more batch are read and answered.

        Args:
            waiting: number of requests that wait or are about to.
        """
        return min(self._max_batch, -(-(waiting + self._computing) // (self._count + 1)))

    async def _drop_left(self) -> None:
        """Drop requests that have waited for a while and whose clients have disconnected."""
        patient = [job for job in self._waiting if time.monotonic() - job.since > _PATIENCE]
        self._end([job for job in patient if await job.left()], RequestError(499, "the client disconnected"))

    def _end(self, jobs: Sequence[_Job], error: Exception) -> None:
        for job in jobs:
            if job in self._waiting:
                self._waiting.remove(job)
            if not job.done.done():
                job.done.set_exception(error)

    async def _compute(self, model: Model, videos: Sequence[Video]) -> ScoreArray:
        scores = np.empty((len(videos), self._classes), np.float32)
        for group in groups([video.length for video in videos]):
            scores[group] = await model.tag([videos[index] for index in group])
        return scores


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Group indices of videos to pad together: none is shorter than a quarter of the longest in its group."""
    result: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not result or 4 * lengths[index] < lengths[result[-1][0]]:
            result.append([])
        result[-1].append(index)
    return result
