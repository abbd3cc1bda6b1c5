"""One thread that computes, and the queue before it: all that waits is tagged together, at most so many at a time.

The queue belongs to the event loop, so it needs no locks. An idle service computes a request at once; while it
computes, others gather, and they are the next batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from reeltag.core.errors import RequestError
from reeltag.data.formats.example import Video
from reeltag.data.loader import Batch, collate
from reeltag.data.schema import Schema
from reeltag.inference.timeline import ScoreArray

_PAUSE, _MOST = 0.002, 0.02  # seconds without a request, in a loop that has nothing to do, that end a gathering; of all
_PATIENCE = 0.1  # seconds that a request waits before it is looked whether its client is still there


@dataclass(eq=False)
class _Job:
    """A request's videos, some of which may be computed already."""

    videos: Sequence[Video]
    scores: ScoreArray
    left: Callable[[], Awaitable[bool]]
    done: asyncio.Future[None]
    since: float = field(default_factory=time.monotonic)
    taken: int = 0


class Batcher:
    """Tags the videos of concurrent requests together.

    Args:
        tag: probabilities [B, C] of a batch; called in one thread, by one batch at a time.
        schema: of the videos.
        max_batch: most videos a batch.
        observe: told the videos of each batch.
    """

    def __init__(
        self, tag: Callable[[Batch], ScoreArray], schema: Schema, max_batch: int, observe: Callable[[int], None]
    ) -> None:
        self._tag, self._schema, self._max_batch, self._observe = tag, schema, max_batch, observe
        self._thread = ThreadPoolExecutor(1, "reeltag-compute")
        self._waiting: deque[_Job] = deque()
        self._running: asyncio.Task[None] | None = None
        self._expected = 0  # requests that the next batch is to have
        self._gathered = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Requests of which something is still to be computed."""
        return len(self._waiting)

    async def tag(self, videos: Sequence[Video], late: float, left: Callable[[], Awaitable[bool]]) -> ScoreArray:
        """Probabilities [N, C] of a request's videos, which must be valid.

        Args:
            videos: one or several.
            late: time of the event loop's clock after which nothing is computed any more.
            left: whether nobody waits for the answer any more.

        Raises:
            RequestError: it is late, or nobody waits.
        """
        loop = asyncio.get_running_loop()
        scores = np.empty((len(videos), self._schema.classes), np.float32)
        job = _Job(videos, scores, left, loop.create_future())
        timer = loop.call_at(late, self._end, [job], RequestError(504, "not answered in time; come again later"))
        self._waiting.append(job)
        if len(self._waiting) >= self._expected:
            self._gathered.set()
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            await job.done
        finally:
            timer.cancel()
            if job in self._waiting:
                self._waiting.remove(job)
        return scores

    def close(self) -> None:
        """End the thread, after the batch that it computes."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        try:
            while parts := self._next_parts():
                await self._tag_parts(parts)
                await self._gather(answered=len(parts))
                await self._drop_left()
        finally:
            self._running = None

    async def _tag_parts(self, parts: Sequence[tuple[_Job, int, int]]) -> None:
        videos = [video for job, begin, end in parts for video in job.videos[begin:end]]
        self._observe(len(videos))
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, videos)
        except Exception as error:  # a bug, which each of the requests reports
            self._end([job for job, _, _ in parts], error)
            return
        for job, begin, end in parts:
            job.scores[begin:end], scores = scores[: end - begin], scores[end - begin :]
            if end == len(job.videos) and not job.done.done():
                job.done.set_result(None)

    def _next_parts(self) -> list[tuple[_Job, int, int]]:
        """The next batch: of each request in turn what finds room; one that is not done queues up again."""
        parts = []
        room = self._max_batch
        for job in list(self._waiting):
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

    async def _gather(self, answered: int) -> None:
        """Before the next batch, wait for the clients that were just answered, as long as they keep coming.

        During a batch their handling and the model would take turns with the interpreter's lock, and both be slower;
        and a larger batch costs less a video. One that was answered alone is not waited for.
        """
        self._expected = min(self._max_batch, len(self._waiting) + answered) if answered > 1 else 0
        begin, idle = time.monotonic(), False
        self._gathered.clear()
        while len(self._waiting) < self._expected and not idle and time.monotonic() - begin < _MOST:
            count, before = len(self._waiting), time.monotonic()
            try:
                await asyncio.wait_for(self._gathered.wait(), _PAUSE)
            except asyncio.TimeoutError:
                idle = len(self._waiting) == count and time.monotonic() - before < 2 * _PAUSE

    async def _drop_left(self) -> None:
        """Leave out requests that waited for a while and whose clients have gone."""
        patient = [job for job in self._waiting if time.monotonic() - job.since > _PATIENCE]
        self._end([job for job in patient if await job.left()], RequestError(499, "the client left"))

    def _end(self, jobs: Sequence[_Job], error: Exception) -> None:
        for job in jobs:
            if job in self._waiting:
                self._waiting.remove(job)
            if not job.done.done():
                job.done.set_exception(error)

    def _compute(self, videos: Sequence[Video]) -> ScoreArray:
        lengths = [video.length for video in videos]
        scores = np.empty((len(videos), self._schema.classes), np.float32)
        for group in groups(lengths):
            chosen = [lengths[index] for index in group]
            scores[group] = self._tag(collate((videos[index] for index in group), chosen, self._schema))
        return scores


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Places of videos that are padded to one length: none is shorter than a quarter of the longest beside it."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not found or 4 * lengths[index] < lengths[found[-1][0]]:
            found.append([])
        found[-1].append(index)
    return found
