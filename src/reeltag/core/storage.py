"""The one place that touches the file system: find, hash, and write whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from reeltag.core.errors import UsageError
from reeltag.core.transfer import RemoteFile, expand, is_url

DataFile = Path | RemoteFile  # a file here, or behind a URL
Patterns = str | Path | Sequence[str | Path]  # one, or several

LOCK = ".lock"


def as_strings(given: Patterns) -> list[str]:
    """What is given once or several times, as a list of texts.

    Raises:
        UsageError: it is neither text nor path.
    """
    several = [given] if isinstance(given, str | Path) or not isinstance(given, Iterable) else list(given)
    if wrong := [each for each in several if not isinstance(each, str | Path)]:
        raise UsageError(f"{wrong[0]!r}: is neither text nor a path; give one, or a list of them")
    return [str(each) for each in several]


def find_files(patterns: Patterns, root: Path | str | None = None) -> list[DataFile]:
    """Files that match glob patterns, each once, sorted by name within a pattern.

    Args:
        patterns: of paths, or of URLs; one or several.
        root: folder that they start from, or its URL.

    Raises:
        UsageError: a pattern matches nothing, or something else than a file.
        TransferError: the files behind a URL are missing, not for us, or out of reach.
    """
    found: dict[DataFile, None] = {}
    for pattern in as_strings(patterns):
        place = join_path(root, pattern)
        found |= dict.fromkeys(_behind(place) if is_url(place) else _matching(Path(place)))
    return list(found)


def _behind(url: str) -> list[RemoteFile]:
    found = expand(url)
    if not found:
        raise UsageError(f"{url}: no file there matches; give the URL of a shard or a pattern in quotes")
    return found


def _matching(full: Path) -> list[Path]:
    anchor = Path(full.anchor)
    relative = str(full.relative_to(anchor)) if full.is_absolute() else str(full)
    matches = [full] if full.exists() else sorted(anchor.glob(relative))
    if not matches:
        where = f"in {full.parent.resolve()} no file matches"
        hint = where if full.parent.exists() else "the folder does not exist"
        raise UsageError(f"{full}: {hint}; give the path of a shard or a glob pattern in quotes")
    for match in matches:
        if match.is_dir():
            raise UsageError(f"{match}: is a folder; name its shards, for example '{match}/*.tfrecord'")
        try:
            require_regular(match)
        except OSError as error:
            raise UsageError(f"{match}: cannot be read ({error.strerror}); name shards alone") from error
    return matches


def join_path(root: Path | str | None, name: str) -> str:
    """The path or URL of a file in a folder, which may be given by its URL; a name that is whole already stays."""
    if is_url(name):
        return name
    return f"{str(root).rstrip('/')}/{name}" if isinstance(root, str) else str((root or Path()) / name)


def file_size(source: DataFile) -> int:
    """Bytes of a file."""
    return source.size if isinstance(source, RemoteFile) else source.stat().st_size


def file_identity(source: DataFile) -> list[Any]:
    """What tells a file and its state from others, as JSON: place, size, and time of the last change or version."""
    if isinstance(source, RemoteFile):
        return [source.url, source.size, source.version]
    status = source.stat()
    return [str(source.resolve()), status.st_size, status.st_mtime_ns]


def require_regular(path: Path) -> Path:
    """The path, behind which there is a file; what else there may be, such as a pipe, might never end.

    Raises:
        OSError: there is none.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "is no name of a file", str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is a folder, device or pipe and no file", str(path))
    return path


def file_inside(folder: Path, name: str) -> Path:
    """The file in a folder that another file names.

    Raises:
        UsageError: there is none, or the name leads out of the folder.
    """
    try:
        path = require_regular(folder / name)
        if path.resolve().parent != folder.resolve():
            raise OSError(errno.EINVAL, "leads elsewhere", name)
    except OSError as error:
        what = f"the file {name!r} that it names cannot be read ({error.strerror})"
        raise UsageError(f"{folder}: {what}; remove the folder and it is made anew") from error
    return path


def refuse_existing(path: Path) -> None:
    """Keep an output from overwriting a file.

    Raises:
        UsageError: the file exists already, or its folder does not.
    """
    if path.exists():
        raise UsageError(f"{path}: exists already; remove it or choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder; create it or choose another place")


def refuse_nonempty(folder: Path) -> None:
    """Keep an output folder from mixing with files that are there already.

    Raises:
        UsageError: the folder is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists already and is not empty; choose another folder")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on failure it vanishes.

    Raises:
        UsageError: the operating system refuses the write (disk full, no permission).
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which is new or empty; it becomes `path`, or on failure vanishes.

    Raises:
        UsageError: the operating system refuses the write (disk full, no permission).
    """
    path = path.resolve()
    temporary = _beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        UsageError: the operating system refuses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def free_bytes(path: Path) -> int:
    """Room on the disk of a path that need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder.

    The system ends the lock with the process, however that ends, so what a killed one leaves is not in the way.

    Raises:
        UsageError: another process is at work in the folder, or it cannot be locked.
    """
    file = _lock(folder)
    try:
        yield
    finally:
        file.close()


@contextmanager
def exclusive_parts(folder: Path, out: Path) -> Iterator[None]:
    """Keep to this process the folder in which the parts of an output are made.

    What killed processes left half-written goes, of the folder and of the output; in the end also what this one left,
    and the folder where no part is in it.

    Args:
        folder: made where it is missing.
        out: the output.

    Raises:
        UsageError: another process works in the folder, or it cannot be made.
    """
    make_folder(folder)
    with locked(folder):
        remove_partials(folder)
        remove_partials_of(out)
        try:
            yield
        finally:
            remove_partials(folder)
            _remove_if_idle(folder)


def is_locked(folder: Path) -> bool:
    """Whether a process has locked a folder; False where nobody can tell."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(folder: Path) -> TextIO:
    """An open file whose lock is this process's; one of `lockf`, which forked loaders do not share."""
    path = folder / LOCK
    try:
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UsageError(f"{folder}: {owner} is at work here; wait for its end, or choose another --out") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S},\n")
        file.flush()
    except OSError as error:
        raise UsageError(f"{path}: cannot be locked ({error.strerror or error}); choose another --out") from error
    return file


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written ({error.strerror or error})")


def _beside(path: Path) -> Path:
    """A name that no other thread or process has for the same file."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}.partial")


def remove_partials(folder: Path) -> None:
    """Remove what a killed process left of files and folders that it was writing, here and one folder below."""
    # No deeper: elsewhere in a run another process may be writing.
    for pattern in (".*.partial", "*/.*.partial"):
        for leftover in folder.glob(pattern):
            _remove(leftover)


def remove_partials_of(path: Path) -> None:
    """Remove what killed processes left of one file that they were writing."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _remove(leftover)


def remove_folder(folder: Path) -> None:
    """Remove a folder; one that is half removed is a leftover of a killed process.

    Raises:
        UsageError: the operating system refuses it.
    """
    try:
        shutil.rmtree(folder.replace(_beside(folder)))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be removed ({error.strerror or error})") from error


def _remove_if_idle(folder: Path) -> None:
    """Remove a folder of unfinished work in which nothing but its lock is left."""
    if [entry.name for entry in folder.glob("*")] == [LOCK]:
        with suppress(UsageError):  # an empty folder is in nobody's way
            remove_folder(folder)


def _remove(leftover: Path) -> None:
    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys, so that equal content is equal bytes."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file that reeltag wrote.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    try:
        return json.loads(require_regular(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as JSON ({error}); remove {path.parent}, and what was in it is made anew"
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(content: object) -> str:
    """SHA-256 of anything that JSON can say, as hex digits; independent of key order."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
