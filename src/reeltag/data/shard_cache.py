"""Shards behind URLs, in a cache of limited size: each is fetched once, checked, and then read like a local file.

In the folder `shards` of the cache a shard is a file that its SHA-256 names, so equal shards are kept once, wherever
they come from. Beside it lie links, by which a state of a URL is known again, and the partial files of those that
arrive. A process that fetches a shard holds a lock on its partial file; others wait for it. What is used longest ago
goes first, also from under those that read it: the system keeps an open file until it is closed.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from reeltag.core import transfer
from reeltag.core.download_cache import cache_folder
from reeltag.core.errors import DataError, UsageError
from reeltag.core.storage import content_hash, file_hash, make_folder
from reeltag.core.text import megabytes
from reeltag.core.transfer import RemoteFile

LIMIT, DEFAULT_GB = "REELTAG_CACHE_GB", 32.0
WAIT_SECONDS = 0.1

_ENTRY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"[0-9a-f]{64}-(\d+)\.partial")
_needed: Counter[str] = Counter()  # entries that this process goes on needing, which go last


def limit_bytes() -> int:
    """Most bytes of the cache.

    Raises:
        UsageError: what the environment says is no size.
    """
    text = os.environ.get(LIMIT, str(DEFAULT_GB))
    try:
        size = round(float(text) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError(f"{LIMIT}: should be gigabytes, such as 100, not {text!r}")
    return size


def set_limit(gigabytes: float) -> None:
    """Set the limit for this process and those that it starts, forked or spawned."""
    os.environ[LIMIT] = str(gigabytes)


def folder() -> Path:
    """Where the shards are."""
    return cache_folder() / "shards"


def size_bytes() -> int:
    """Bytes of all that is in the cache."""
    return sum(path.stat().st_size for path in folder().glob("*") if _ENTRY.fullmatch(path.name))


def open_copy(file: RemoteFile) -> io.FileIO:
    """A shard's copy, fetched if need be; it stays whole until it is closed, whatever becomes of the cache.

    Raises:
        TransferError: it is not there, or the other side stays in trouble.
        DataError: it is not the one that was indexed.
        UsageError: the cache has no room for it.
    """
    while True:
        with suppress(FileNotFoundError):  # another process made room
            return io.FileIO(_entry(fetch(file)))


def fetch(file: RemoteFile, advance: Callable[[int], None] = lambda size: None) -> RemoteFile:
    """Bring a shard into the cache, unless it is there; another process that fetches it is waited for.

    Args:
        file: the shard.
        advance: told the bytes of each chunk that arrives.

    Returns:
        The shard with its SHA-256.

    Raises:
        TransferError: it is not there, or the other side stays in trouble.
        DataError: it is not the one that was indexed.
        UsageError: the cache has no room for it.
    """
    try:
        make_folder(folder())
        return _fetched(file, advance)
    except OSError as error:
        what = f"the cache cannot be written ({error.strerror or error})"
        raise UsageError(f"{folder()}: {what}; set REELTAG_CACHE to another folder") from error


def _fetched(file: RemoteFile, advance: Callable[[int], None]) -> RemoteFile:
    key = file.sha256 or content_hash([file.url, file.size, file.version])
    link, partial = folder() / f"{key}.link", folder() / f"{key}-{file.size}.partial"
    while True:
        if known := _known(file, link):
            return known
        with _claimed(partial, file.size) as mine:
            if not mine:
                continue
            if known := _known(file, link):  # since we looked
                partial.unlink()
                return known
            known = replace(file, sha256=_arrived(file, partial, advance))
            partial.replace(_entry(known))
            if not file.sha256:
                _link(link, known)
            return known


def _known(file: RemoteFile, link: Path) -> RemoteFile | None:
    """The shard with its SHA-256, where the cache has a copy, which counts as used now."""
    if not file.sha256 and file.version is None:  # nothing tells whether a copy is still right
        return None
    known = file if file.sha256 else replace(file, sha256=_linked(link))
    if not known.sha256:
        return None
    try:
        if _entry(known).stat().st_size == file.size:
            os.utime(_entry(known))
            return known
        _entry(known).unlink()  # a file system lost a part of it
    except OSError:
        pass
    return None


def discard(file: RemoteFile) -> None:
    """Drop a copy that turned out to be damaged."""
    key = content_hash([file.url, file.size, file.version])
    if digest := file.sha256 or _linked(folder() / f"{key}.link"):
        with suppress(OSError):
            (folder() / digest).unlink()


def protect(digest: str) -> None:
    """Let a shard go after all others, as this process goes on needing it, until `release`."""
    _needed[digest] += 1


def unprotect(digest: str) -> None:
    """Let a shard go in its turn."""
    _needed[digest] -= 1


def _entry(file: RemoteFile) -> Path:
    return folder() / file.sha256


def _linked(link: Path) -> str:
    with suppress(OSError):
        return link.readlink().name
    return ""


def _link(link: Path, known: RemoteFile) -> None:
    with suppress(FileNotFoundError):
        link.unlink()
    with suppress(FileExistsError):  # by another process
        link.symlink_to(_entry(known).name)


def _arrived(file: RemoteFile, partial: Path, advance: Callable[[int], None]) -> str:
    """The SHA-256 of a shard, once it is whole at `partial`."""
    if not file.sha256:
        os.truncate(partial, 0)  # only a hash tells whether two halves belong together
    elif transfer.stat(file.url).size != file.size:
        raise _changed(file, partial)
    for _ in range(2):  # what came may be damaged, or half of it from before a change
        transfer.download(file.url, partial, file.size, version=file.version, advance=advance)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        digest = file_hash(partial)
        if file.sha256 in ("", digest):
            return digest
        os.truncate(partial, 0)
    raise _changed(file, partial)


def _changed(file: RemoteFile, partial: Path) -> DataError:
    partial.unlink()
    return DataError("changed since it was indexed", file=file.url)


@contextmanager
def _claimed(partial: Path, size: int) -> Iterator[bool]:
    """Lock a partial file that there is room for; where another process has it, wait for its end and give False."""
    file = _lock(partial, size)
    try:
        yield file is not None
    finally:
        if file is not None:
            _unlock(file)


def _lock(partial: Path, size: int) -> BinaryIO | None:
    file, mine = None, False
    with (folder() / ".room").open("ab") as room:
        fcntl.flock(room, fcntl.LOCK_EX)
        try:
            if not partial.exists() and _make_room(size):
                partial.touch()
            with suppress(FileNotFoundError, BlockingIOError):
                file = partial.open("rb")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = _is_still(file, partial)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a process that is forked now has the file too
    if mine:
        return file
    if file is None:
        time.sleep(WAIT_SECONDS)  # for room
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
        _unlock(file)
    return None


def _is_still(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one of that name, and was not renamed or removed."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _unlock(file: BinaryIO) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _make_room(size: int) -> bool:
    """Remove what was used longest ago until so many bytes more fit; False: what others fetch is in the way.

    Raises:
        UsageError: they cannot fit.
    """
    most = limit_bytes()
    if size > most:
        what = f"a shard of {megabytes(size)} does not fit the cache's limit of {megabytes(most)}"
        raise UsageError(f"{folder()}: {what}; raise data.cache_gb or {LIMIT}")
    held, coming, found = 0, 0, []
    for path in folder().iterdir():
        partial = _PARTIAL.fullmatch(path.name)
        if partial or _ENTRY.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.stat()
                reserved = int(partial[1]) if partial else status.st_size
                found.append((_needed[path.name] > 0, status.st_mtime_ns, path, reserved, reserved - status.st_size))
                held, coming = held + reserved, coming + reserved - status.st_size
    removed = False
    for *_, path, reserved, missing in sorted(found):
        if held + size <= most and _free() >= coming + size:
            break
        if _remove(path):
            held, coming, removed = held - reserved, coming - missing, True
    if removed:
        for link in folder().glob("*.link"):
            if not link.exists():
                link.unlink(missing_ok=True)
    if held + size > most:
        return False
    if _free() < coming + size:
        what = f"{megabytes(coming + size)} are needed for shards, and {megabytes(_free())} are free there"
        raise UsageError(f"{folder()}: {what}; make room, or set REELTAG_CACHE to a folder on another disk")
    return True


def _free() -> int:
    status = os.statvfs(folder())
    return status.f_bavail * status.f_frsize


def _remove(path: Path) -> bool:
    """Remove an entry, or a partial file that nobody works on."""
    with suppress(FileNotFoundError):
        if path.suffix != ".partial":
            path.unlink()
            return True
        with path.open("ab") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)
            return True
    return False
