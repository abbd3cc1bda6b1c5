"""Shards that later work needs, fetched while earlier work is done."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from reeltag.core.errors import ReeltagError
from reeltag.core.storage import DataFile
from reeltag.core.transfer import RemoteFile
from reeltag.data import shard_cache

CONCURRENT_FETCHES = 4  # shards that arrive at a time


class _StoppedError(Exception):
    """The work ended before a shard arrived."""


class Prefetcher:
    """Fetches in the background what each step of some work needs, in order, as far as the cache holds it all.

    What cannot be fetched ahead is fetched when it is needed, and says then what is wrong. Begin after other processes
    were forked, and leave the block to end it.

    Args:
        needs: the shards of each step; None for nothing to fetch.
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
            # Not of a pool, for which the interpreter waits at its end.
            threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stopped = True
            self._forget(list(self._last))
            self._changed.notify_all()

    def reached(self, step: int) -> None:
        """Say which step comes now: what only earlier ones needed may go."""
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
        """The next shard, once there is room for it; None when there is no more."""
        while True:
            with self._changed:  # let go after each step, as the work itself waits for it in `reached`
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
        """Each step with the shards that have no room yet, one by one, and None last."""
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
    """Shards one after the other; those that are remote are fetched while the ones before are worked on."""
    needs = [[source] if isinstance(source, RemoteFile) else [] for source in sources]
    with Prefetcher(needs if any(needs) else None) as later:
        for number, source in enumerate(sources):
            later.reached(number)
            yield source
