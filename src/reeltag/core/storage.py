"""Locate, hash, lock and atomically write files."""

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
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from reeltag.core.errors import UsageError
from reeltag.core.remote_files import RemoteFile, expand, is_url

DataFile = Path | RemoteFile  # a local or a remote file
Patterns = str | Path | Sequence[str | Path]  # one or several

LOCK = ".lock"


def as_strings(given: Patterns) -> list[str]:
    """Return one or several paths or patterns as a list of strings.

    Raises:
        UsageError: an entry is neither a string nor a path.
    """
    several = [given] if isinstance(given, str | Path) or not isinstance(given, Iterable) else list(given)
    if wrong := [each for each in several if not isinstance(each, str | Path)]:
        raise UsageError(f"{wrong[0]!r}: is neither text nor a path; give one, or a list of them")
    return [str(each) for each in several]


def find_files(patterns: Patterns, root: Path | str | None = None) -> list[DataFile]:
    """Find the files that match glob patterns; each appears once, sorted by name within a pattern.

    Folders that exist are taken as they are called, whatever letters their names have, and hidden files are passed
    over unless a pattern names them. Names match in any Unicode form.

    Args:
        patterns: one or several glob patterns of paths or URLs.
        root: folder, or its URL, that relative patterns start from; never a pattern itself.

    Raises:
        UsageError: a pattern matches nothing, or something that is not a regular file.
        TransferError: remote files are missing, not accessible or cannot be reached.
    """
    found: dict[DataFile, None] = {}
    for pattern in as_strings(patterns):
        place = join_path(root, pattern)
        within = root if isinstance(root, Path) and not Path(pattern).is_absolute() else Path()
        found |= dict.fromkeys(_behind(place) if is_url(place) else _matching(within, pattern))
    return list(found)


def _behind(url: str) -> list[RemoteFile]:
    found = [file for file in expand(url) if not _is_hidden(file.url, url)]
    if not found:
        raise UsageError(f"{url}: no file matches; give the URL of a shard or a pattern in quotes")
    return found


def match_paths(root: Path, pattern: str) -> list[Path]:
    """Return the local files and folders that match a pattern as `find_files` reads it, sorted; none if none does.

    Raises:
        UsageError: the operating system refuses the name.
    """
    forms = dict.fromkeys([pattern, *(unicodedata.normalize(form, pattern) for form in ("NFC", "NFD"))])
    try:
        return list(dict.fromkeys(match for form in forms for match in _glob(root, Path(form))))
    except OSError as error:
        raise UsageError(f"{root / pattern}: cannot be read ({error.strerror}); correct the path") from error


def _matching(root: Path, pattern: str) -> list[Path]:
    matches = match_paths(root, pattern)
    if not matches:
        full = root / pattern
        where = f"no file in {full.parent.resolve()} matches"
        hint = where if full.parent.exists() else "the folder does not exist"
        raise UsageError(f"{full}: {hint}; give the path of a shard or a glob pattern in quotes")
    for match in matches:
        if match.is_dir():
            raise UsageError(f"{match}: is a folder; name its shards, for example '{match}/*.tfrecord'")
        try:
            require_regular(match)
        except OSError as error:
            raise UsageError(f"{match}: cannot be read ({error.strerror}); name only shards") from error
    return matches


def _glob(root: Path, pattern: Path) -> list[Path]:
    """Return the files that match a pattern, whose first parts are names as long as such folders exist."""
    parts = list(pattern.parts)
    while parts and os.path.exists(root / parts[0]):  # noqa: PTH110 - of a pathlib path, some errors are raised
        root /= parts.pop(0)
    if not parts:
        return [root]
    rest = str(Path(*parts))
    return sorted(match for match in root.glob(rest) if not _is_hidden(str(match.relative_to(root)), rest))


def _is_hidden(name: str, pattern: str) -> bool:
    """Return True if a path has a hidden part, such as `._x` or `.cache`, and its pattern has none."""
    hidden = [any(part.startswith(".") and part.strip(".") for part in each.split("/")) for each in (name, pattern)]
    return hidden == [True, False]


def join_path(root: Path | str | None, name: str) -> str:
    """Join a root folder, or its URL, and a name; an absolute path or URL stays as it is."""
    if is_url(name):
        return name
    return f"{str(root).rstrip('/')}/{name}" if isinstance(root, str) else str((root or Path()) / name)


def file_size(source: DataFile) -> int:
    """Return the size of a file in bytes."""
    return source.size if isinstance(source, RemoteFile) else source.stat().st_size


def file_identity(source: DataFile) -> list[Any]:
    """Identify a file and its state, as JSON: location, size, and time of the last change or version."""
    if isinstance(source, RemoteFile):
        return [source.url, source.size, source.version]
    status = source.stat()
    return [str(source.resolve()), status.st_size, status.st_mtime_ns]


def require_regular(path: Path) -> Path:
    """Return the path if it is a regular file; reading anything else, such as a pipe, might never end.

    Raises:
        OSError: there is no regular file at the path.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "is not a valid file name", str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is a folder, device or pipe, not a file", str(path))
    return path


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, by a name that was read from another file.

    Raises:
        UsageError: the file does not exist, or the name leads out of the folder.
    """
    try:
        path = require_regular(folder / name)
        if path.resolve().parent != folder.resolve():
            raise OSError(errno.EINVAL, "leads elsewhere", name)
    except OSError as error:
        what = f"the file {name!r} that it lists cannot be read ({error.strerror})"
        raise UsageError(f"{folder}: {what}; remove the folder, and reeltag recreates it") from error
    return path


def refuse_existing(path: Path) -> None:
    """Refuse an output path that already exists or cannot be written, before anything is computed for it.

    Raises:
        UsageError: the file exists already, its folder does not, or the operating system refuses to write there.
    """
    if path.exists():
        raise UsageError(f"{path}: exists already; remove it or choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder; create it or choose another one")
    probe = _beside(path)
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may remove partial files of the same output
    except OSError as error:
        raise _unwritable(path, error) from error


def refuse_nonempty(folder: Path) -> None:
    """Refuse an output folder that already holds files.

    Raises:
        UsageError: the folder is not empty, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; choose a folder that does not exist yet")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: exists already and is not empty; choose another folder")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` on success and is removed on failure.

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


def link_or_copy(source: Path, path: Path) -> None:
    """Make `path` a hard link of a file, or a copy where the file system has no links.

    Raises:
        UsageError: the operating system refuses the write.
    """
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, which must be new or empty, on success and is removed on failure.

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
    """Create a folder and its parents unless they exist.

    Raises:
        UsageError: the operating system refuses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of a path that need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder within a block.

    The system releases the lock when the process ends, however it ends, so a killed process never blocks others.
    `lockf` locks belong to one process: forked children neither hold nor release them.

    Raises:
        UsageError: another process holds the lock (the message names it), or the folder cannot be locked.
    """
    file = _lock(folder)
    try:
        yield
    finally:
        file.close()


@contextmanager
def exclusive_parts(folder: Path, out: Path) -> Iterator[None]:
    """Lock the folder that holds the parts of an output within a block, and clean it up.

    Partial files of killed processes are removed at the start, in the folder and beside the output. At the end the
    partial files of this process are removed, and the folder itself if it holds no part.

    Args:
        folder: created if it is missing.
        out: the output.

    Raises:
        UsageError: another process holds the folder's lock, or the folder cannot be created.
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
    """Return True if a process holds the folder's lock; False if that cannot be determined."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(folder: Path) -> TextIO:
    """Open the lock file and lock it with `lockf`, which forked loader processes do not share."""
    path = folder / LOCK
    try:
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UsageError(f"{folder}: is in use by {owner}; wait until it ends, or choose another --out") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        file.flush()
    except OSError as error:
        raise UsageError(f"{path}: cannot be locked ({error.strerror or error}); choose another --out") from error
    return file


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written ({error.strerror or error})")


def _beside(path: Path) -> Path:
    """Return a temporary name that no other thread or process uses for the same file."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}.partial")


def remove_partials(folder: Path) -> None:
    """Remove partial files and folders of killed processes, in this folder and one level below."""
    # No deeper: elsewhere in a run another process may be writing.
    for pattern in (".*.partial", "*/.*.partial"):
        for leftover in folder.glob(pattern):
            _remove(leftover)


def remove_partials_of(path: Path) -> None:
    """Remove the partial files that killed processes left of one file, and the partial files of those."""
    for dots in (".", ".."):
        for leftover in path.parent.glob(f"{dots}{glob.escape(path.name)}.*.partial"):
            _remove(leftover)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that an interrupted removal leaves a partial folder.

    Raises:
        UsageError: the operating system refuses it.
    """
    try:
        shutil.rmtree(folder.replace(_beside(folder)))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be removed ({error.strerror or error})") from error


def _remove_if_idle(folder: Path) -> None:
    """Remove a folder of parts that holds nothing but its lock file and empty folders."""
    if all(entry.name == LOCK or (entry.is_dir() and not any(entry.iterdir())) for entry in folder.glob("*")):
        with suppress(UsageError):  # an empty folder does no harm
            remove_folder(folder)


def _remove(leftover: Path) -> None:
    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; on failure the old content stays."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object, *, compact: bool = False) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes.

    Args:
        path: of the file.
        content: JSON-serialisable.
        compact: without indentation, for a large file that programs read.
    """
    text = _compact(content) if compact else json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def write_json_once(path: Path, content: object) -> None:
    """Write JSON unless the file exists; of processes that write at the same time, the first one does.

    Raises:
        UsageError: the operating system refuses the write.
    """
    beside = _beside(path)
    write_json(beside, content)
    try:
        os.link(beside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink()


def read_json(path: Path) -> Any:
    """Read a JSON file that reeltag wrote.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    try:
        return json.loads(require_regular(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as JSON ({error}); remove {path.parent}, and reeltag recreates it"
        ) from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(content: object) -> str:
    """Return the SHA-256 of a JSON-serialisable value in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(_compact(content).encode(errors="surrogateescape")).hexdigest()


def _compact(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
