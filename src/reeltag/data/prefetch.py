"""Download remote shards in the background before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from reeltag.core.errors import ReeltagError
from reeltag.core.remote_files import RemoteFile
from reeltag.core.storage import DataFile
from reeltag.data import shard_cache

CONCURRENT_FETCHES = 4  # parallel downloads


class _StoppedError(Exception):
    """The work ended before a shard was downloaded."""


class Prefetcher:
    """Background download of the shards that each step needs, in order, as far as the cache has room.

    A shard that fails to download is downloaded again when it is needed, which then raises the error. Enter the block
    after other processes were forked; leaving it stops the threads.

    Args:
        needs: the shards of each step; None if there is nothing to download.
    """

    def __init__(self, needs: Iterable[Sequence[RemoteFile]] | None) -> None:
        self._room = 0 if needs is None else shard_cache.limit_bytes()
        self._changed = threading.Condition()
        self._last: dict[RemoteFile, int] = {}  # the last step known to need each shard that has room
        self._held: dict[RemoteFile, str] = {}
        self._coming = None if needs is None else self._new(needs)
        self._next: tuple[int, RemoteFile | None] | None = None
        self._step, self._stopped = 0, False

    def __enter__(self) -> Prefetcher:
        for _ in range(CONCURRENT_FETCHES if self._coming else 0):
            # Not a thread pool, since the interpreter would wait for it at exit.
            threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stopped = True
            self._forget(list(self._last))
            self._changed.notify_all()

    def reached(self, step: int) -> None:
        """Report the current step, so that shards that only earlier steps needed may be evicted."""
        with self._changed:
            self._step = step
            self._forget([file for file, last in self._last.items() if last < step])
            self._changed.notify_all()

    def _work(self) -> None:
        while (file := self._take()) is not None:
            with suppress(ReeltagError, _StoppedError):
                digest = shard_cache.fetch(file, self._refuse_if_stopped).sha256
                with self._changed:
                    if file in self._last and file not in self._held:
                        self._held[file] = digest
                        shard_cache.protect(digest)

    def _take(self) -> RemoteFile | None:
        """Return the next shard once there is room for it; None if there are no more."""
        while True:
            with self._changed:  # released in each iteration, as the work itself waits for it in `reached`
                self._next = self._next or next(self._coming or iter(()), None)
                if self._stopped or self._next is None:
                    return None
                step, file = self._next
                if file is None or step < self._step:
                    self._next = None
                elif sum(other.size for other in self._last) + file.size <= self._room:
                    self._next, self._last[file] = None, step
                    return file
                else:
                    self._changed.wait()

    def _new(self, needs: Iterable[Sequence[RemoteFile]]) -> Iterator[tuple[int, RemoteFile | None]]:
        """Yield each step with each shard that has no room reserved yet, and with None last."""
        for step, files in enumerate(needs):
            for file in files:
                if file in self._last:
                    self._last[file] = step
                else:
                    yield step, file
            yield step, None

    def _forget(self, files: Sequence[RemoteFile]) -> None:
        for file in files:
            del self._last[file]
            if digest := self._held.pop(file, None):
                shard_cache.unprotect(digest)

    def _refuse_if_stopped(self, size: int) -> None:
        if self._stopped:
            raise _StoppedError


def prefetched(sources: Sequence[DataFile]) -> Iterator[DataFile]:
    """Yield shards in order; remote ones are downloaded while earlier ones are processed."""
    needs = [[source] if isinstance(source, RemoteFile) else [] for source in sources]
    with Prefetcher(needs if any(needs) else None) as later:
        for number, source in enumerate(sources):
            later.reached(number)
            yield source
