"""Cache of limited size for remote shards: each is downloaded once, checked, and then read like a local file.

In the folder `shards` of the cache, each shard is a file named by its SHA-256, so equal shards are stored once. Links
beside them map a state of a URL to a shard, and partial files belong to downloads in progress. A process that downloads
a shard holds a lock on its partial file; others wait for it. The least recently used shard is evicted first, even while
a process reads it, since the system keeps an open file until it is closed.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from reeltag.core import remote_files
from reeltag.core.download_cache import cache_folder
from reeltag.core.errors import DataError, UsageError
from reeltag.core.remote_files import RemoteFile
from reeltag.core.storage import content_hash, file_hash, make_folder
from reeltag.core.text import megabytes

LIMIT, DEFAULT_GB = "REELTAG_CACHE_GB", 32.0
WAIT_SECONDS = 0.1

_ENTRY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"[0-9a-f]{64}-(\d+)\.partial")
_needed: Counter[str] = Counter()  # shards that this process still needs, which are evicted last


def limit_bytes() -> int:
    """Return the size limit of the cache in bytes.

    Raises:
        UsageError: the environment variable is not a size.
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
    """Set the size limit for this process and its child processes, forked or spawned."""
    os.environ[LIMIT] = str(gigabytes)


def folder() -> Path:
    """Return the folder of the cached shards."""
    return cache_folder() / "shards"


def size_bytes() -> int:
    """Return the total size of the cached shards in bytes."""
    return sum(path.stat().st_size for path in folder().glob("*") if _ENTRY.fullmatch(path.name))


def open_copy(file: RemoteFile) -> io.FileIO:
    """Open a shard's local copy, downloading it if needed; it stays readable even if it is evicted meanwhile.

    Raises:
        TransferError: the shard is missing, or the server keeps failing.
        DataError: the shard has changed since it was indexed.
        UsageError: the cache has no room for it.
    """
    while True:
        with suppress(FileNotFoundError):  # another process evicted it
            return io.FileIO(_entry(fetch(file)))


def fetch(file: RemoteFile, advance: Callable[[int], None] = lambda size: None) -> RemoteFile:
    """Download a shard into the cache unless it is there; wait if another process is downloading it.

    Args:
        file: the shard.
        advance: called with the bytes of each chunk.

    Returns:
        The shard with its SHA-256.

    Raises:
        TransferError: the shard is missing, or the server keeps failing.
        DataError: the shard has changed since it was indexed.
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
            if known := _known(file, link):  # downloaded by another process meanwhile
                partial.unlink()
                return known
            known = replace(file, sha256=_arrived(file, partial, advance))
            partial.replace(_entry(known))
            if not file.sha256:
                _link(link, known)
            return known


def _known(file: RemoteFile, link: Path) -> RemoteFile | None:
    """Return the shard with its SHA-256 if the cache has a copy, and mark it as just used."""
    if not file.sha256 and file.version is None:  # without a version a copy may be outdated
        return None
    known = file if file.sha256 else replace(file, sha256=_linked(link))
    if not known.sha256:
        return None
    try:
        if _entry(known).stat().st_size == file.size:
            os.utime(_entry(known))
            return known
        _entry(known).unlink()  # truncated by the file system
    except OSError:
        pass
    return None


def discard(file: RemoteFile) -> None:
    """Remove a damaged copy from the cache."""
    key = content_hash([file.url, file.size, file.version])
    if digest := file.sha256 or _linked(folder() / f"{key}.link"):
        with suppress(OSError):
            (folder() / digest).unlink()


def protect(digest: str) -> None:
    """Evict a shard only after all others, until `unprotect`, as this process still needs it."""
    _needed[digest] += 1


def unprotect(digest: str) -> None:
    """Undo one `protect` of a shard."""
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
    """Download a shard completely to `partial`; return its SHA-256."""
    if not file.sha256:
        os.truncate(partial, 0)  # without a known hash, two halves may be of different versions
    elif remote_files.stat(file.url).size != file.size:
        raise _changed(file, partial)
    for _ in range(2):  # the bytes may be damaged, or a mix of two versions
        remote_files.download(file.url, partial, file.size, version=file.version, advance=advance)
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
    """Lock a partial file after making room for it; if another process holds it, wait and yield False."""
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
            fcntl.flock(room, fcntl.LOCK_UN)  # a child forked meanwhile inherits the descriptor
    if mine:
        return file
    if file is None:
        time.sleep(WAIT_SECONDS)  # for room
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
        _unlock(file)
    return None


def _is_still(file: BinaryIO, path: Path) -> bool:
    """Return True if a path still names an open file, which was not renamed or removed."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _unlock(file: BinaryIO) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _make_room(size: int) -> bool:
    """Evict the least recently used shards until `size` bytes fit; False if other downloads take the room.

    Raises:
        UsageError: the bytes cannot fit.
    """
    most = limit_bytes()
    if size > most:
        what = f"a shard of {megabytes(size)} does not fit the cache's limit of {megabytes(most)}"
        raise UsageError(f"{folder()}: {what}; raise data.cache_gb or {LIMIT}")
    files = _by_eviction()
    reserved, missing = size + sum(file.reserved for file in files), size + sum(file.missing for file in files)
    for file in files:
        if reserved <= most and _free() >= missing:
            break
        if _remove(file.path):
            reserved, missing = reserved - file.reserved, missing - file.missing
    _remove_dangling_links()
    if reserved > most:
        return False
    if _free() < missing:
        what = f"{megabytes(missing)} are needed for shards, but only {megabytes(_free())} are free"
        raise UsageError(f"{folder()}: {what}; make room, or set REELTAG_CACHE to a folder on another disk")
    return True


@dataclass(frozen=True, order=True)
class _Held:
    """A cached shard, or the partial file of a download; smaller is evicted earlier.

    Attributes:
        needed: True for a shard that this process still needs.
        used: time of the last use, in nanoseconds.
        path: path of the file.
        reserved: size of the complete shard in bytes.
        missing: bytes that are still to be downloaded.
    """

    needed: bool
    used: int
    path: Path
    reserved: int
    missing: int


def _by_eviction() -> list[_Held]:
    """List the shards and partial files of the cache in the order in which they are evicted."""
    files = []
    for path in folder().iterdir():
        partial = _PARTIAL.fullmatch(path.name)
        if partial or _ENTRY.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.stat()
                reserved = int(partial[1]) if partial else status.st_size
                needed = _needed[path.name] > 0
                files.append(_Held(needed, status.st_mtime_ns, path, reserved, reserved - status.st_size))
    return sorted(files)


def _remove_dangling_links() -> None:
    for link in folder().glob("*.link"):
        if not link.exists():
            link.unlink(missing_ok=True)


def _free() -> int:
    status = os.statvfs(folder())
    return status.f_bavail * status.f_frsize


def _remove(path: Path) -> bool:
    """Remove a cached shard, or a partial file that no process has locked."""
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
