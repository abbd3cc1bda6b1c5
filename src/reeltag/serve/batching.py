"""Dynamic batching: a queue of requests, and one thread that computes those that wait as one batch.

The queue belongs to the event loop, so it needs no locks. An idle service computes a request at once; requests that
arrive during a computation form the next batch.
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

_PAUSE, _MOST = 0.002, 0.02  # gathering ends after this many idle seconds without a request, and after this many in all
_PATIENCE = 0.1  # seconds that a request waits before the service checks that its client is still connected


@dataclass(eq=False)
class _Job:
    """Videos of a request, some of which may have been computed already."""

    videos: Sequence[Video]
    scores: ScoreArray
    left: Callable[[], Awaitable[bool]]
    done: asyncio.Future[None]
    since: float = field(default_factory=time.monotonic)
    taken: int = 0


class Batcher:
    """Computes the videos of concurrent requests in batches.

    Args:
        tag: returns probabilities [B, C] of a batch; called in one thread, one batch at a time.
        schema: schema of the videos.
        max_batch: maximum number of videos per batch.
        observe: called with the number of videos of each batch.
    """

    def __init__(
        self, tag: Callable[[Batch], ScoreArray], schema: Schema, max_batch: int, observe: Callable[[int], None]
    ) -> None:
        self._tag, self._schema, self._max_batch, self._observe = tag, schema, max_batch, observe
        self._thread = ThreadPoolExecutor(1, "reeltag-compute")
        self._waiting: deque[_Job] = deque()
        self._running: asyncio.Task[None] | None = None
        self._expected = 0  # number of requests that the next batch waits for
        self._gathered = asyncio.Event()

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
            RequestError: the deadline has passed, or the client has disconnected.
        """
        loop = asyncio.get_running_loop()
        scores = np.empty((len(videos), self._schema.classes), np.float32)
        job = _Job(videos, scores, left, loop.create_future())
        timer = loop.call_at(deadline, self._end, [job], RequestError(504, "not answered in time; try again later"))
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
        """Stop the thread after its current batch."""
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
        except Exception as error:  # a bug: every request of the batch reports it
            self._end([job for job, _, _ in parts], error)
            return
        for job, begin, end in parts:
            job.scores[begin:end], scores = scores[: end - begin], scores[end - begin :]
            if end == len(job.videos) and not job.done.done():
                job.done.set_result(None)

    def _next_parts(self) -> list[tuple[_Job, int, int]]:
        """Take the next batch: from each request in turn as many videos as fit; unfinished requests queue again."""
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
        """Wait before the next batch for new requests of the clients that were just answered, while they keep arriving.

        Handled during a batch, these requests and the model would compete for the interpreter lock, and both be slower;
        a larger batch also costs less per video. After a batch of a single request there is no wait.
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
        """Drop requests that have waited for a while and whose clients have disconnected."""
        patient = [job for job in self._waiting if time.monotonic() - job.since > _PATIENCE]
        self._end([job for job in patient if await job.left()], RequestError(499, "the client disconnected"))

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
    """Group indices of videos to pad together: none is shorter than a quarter of the longest in its group."""
    result: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not result or 4 * lengths[index] < lengths[result[-1][0]]:
            result.append([])
        result[-1].append(index)
    return result
