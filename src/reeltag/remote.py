"""Files behind a URL, kept in a cache: fetched once, and again when they change."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from reeltag.errors import ArtifactError, UsageError
from reeltag.storage import atomic_path, content_hash

CONNECT_SECONDS, SILENT_SECONDS = 15, 60
LATER = (408, 425, 429)  # statuses by which nothing is refused for good

logger = logging.getLogger(__name__)


def is_url(name: str) -> bool:
    """Whether a name is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def cache_folder() -> Path:
    """Where fetched files are kept: $REELTAG_CACHE, or `reeltag` in the user's cache folder."""
    if own := os.environ.get("REELTAG_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reeltag"


def fetch(url: str, check: Callable[[Path], object]) -> Path:
    """A local copy of a remote file; where the other side cannot be reached, the last one, with a warning in the log.

    Args:
        url: http(s)://, or of any other file system that fsspec knows.
        check: told the new file before it enters the cache; raises ArtifactError where it is bad.

    Raises:
        ArtifactError: there is no such file, it did not arrive whole, or it is bad.
        UsageError: nothing here can read such URLs, or the cache cannot be written.
    """
    # fsspec's own file cache takes every file behind HTTP for unchanging, and needs the network to look at a copy.
    filesystem, path = _file_system(url)
    folder = cache_folder() / content_hash(url)[:16]
    try:
        version = _version(url, filesystem, path)
    except Exception as error:  # each file system has exceptions of its own
        if _refused(url, error):
            what = f"there is no such file, or not for you ({_reason(error)})"
            raise ArtifactError(f"{url}: {what}; check the URL") from error
        return _last_copy(url, folder, error)
    target = folder / f"{content_hash(version)[:16]}.reeltag"
    if version is not None and target.exists():
        with suppress(OSError):  # of somebody else's cache
            target.touch()  # the last one seen, if the next call finds no network
        return target
    with atomic_path(target) as temporary:
        try:
            filesystem.get_file(path, str(temporary))
        except Exception as error:
            if _in_trouble(url, error) and any(folder.glob("*.reeltag")):
                return _last_copy(url, folder, error)
            raise ArtifactError(f"{url}: did not arrive whole ({_reason(error)}); try again") from error
        try:
            check(temporary)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(temporary), url)) from error
    return target


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {}
    if _is_http(url):
        from aiohttp import ClientTimeout

        # aiohttp's default allows five minutes for the whole file, and knows no proxy.
        patience = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        options["client_kwargs"] = {"timeout": patience, "trust_env": True}
    try:
        filesystem, path = fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        what = f"cannot be read here ({_reason(error)})"
        raise UsageError(f"{url}: {what}; s3:// and gs:// need pip install 'reeltag[cloud]'") from error
    filesystem.invalidate_cache()
    return filesystem, path


def _version(url: str, filesystem: Any, path: str) -> object:
    """What tells this state of the file from others; None if nothing does, and the file has to be fetched again."""
    if not _is_http(url):
        if filesystem.info(path)["type"] != "file":
            raise FileNotFoundError("is a folder, device or pipe and no file")
        return filesystem.ukey(path)
    info = filesystem.info(path)
    known = {key: info[key] for key in ("ETag", "Content-MD5", "Digest", "Last-Modified") if key in info}
    return [known, info["size"]] if known else None


def _refused(url: str, error: Exception) -> bool:
    """Whether the other side answered that there is no such file, or not for us."""
    if _is_http(url):  # whose file system calls every failure a missing file
        status = getattr(error.__cause__ or error, "status", None)
        return status is not None and status < 500 and status not in LATER
    return isinstance(error, FileNotFoundError | PermissionError)


def _in_trouble(url: str, error: Exception) -> bool:
    """Whether the other side answered that it cannot now."""
    return _is_http(url) and getattr(error.__cause__ or error, "status", None) is not None and not _refused(url, error)


def _last_copy(url: str, folder: Path, error: Exception) -> Path:
    copies = sorted(folder.glob("*.reeltag"), key=lambda copy: copy.stat().st_mtime)
    if not copies:
        what = f"cannot be reached ({_reason(error)}), and there is no copy in {cache_folder()}"
        raise ArtifactError(f"{url}: {what}; check the URL and the network") from error
    logger.warning("%s: cannot be reached (%s); using the copy in the cache, %s", url, _reason(error), copies[-1])
    return copies[-1]


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))
