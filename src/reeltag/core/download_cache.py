"""Files behind a URL, kept in a cache: fetched once, and again when they change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from reeltag.core.errors import ArtifactError
from reeltag.core.storage import atomic_path, content_hash
from reeltag.core.transfer import describe_error, file_system, is_refusal, refusal_error, version

logger = logging.getLogger(__name__)


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
    filesystem, path = file_system(url)
    folder = cache_folder() / content_hash(url)[:16]
    try:
        state = _version(filesystem, path)
    except Exception as error:  # each file system has exceptions of its own
        if is_refusal(error):
            raise ArtifactError(str(refusal_error(url, error))) from error
        return _last_copy(url, folder, error)
    target = folder / f"{content_hash(state)[:16]}.reeltag"
    if state is not None and target.exists():
        with suppress(OSError):  # of somebody else's cache
            target.touch()  # the last one seen, if the next call finds no network
        return target
    with atomic_path(target) as temporary:
        try:
            filesystem.get_file(path, str(temporary))
        except Exception as error:
            if not is_refusal(error) and any(folder.glob("*.reeltag")):
                return _last_copy(url, folder, error)
            raise ArtifactError(f"{url}: did not arrive whole ({describe_error(error)}); try again") from error
        try:
            check(temporary)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(temporary), url)) from error
    return target


def _version(filesystem: Any, path: str) -> object:
    """What tells this state of the file from others; None if nothing does, and the file has to be fetched again."""
    info = filesystem.info(path)
    if info["type"] != "file":
        raise FileNotFoundError("is a folder, device or pipe and no file")
    known = version(info)
    return known and [known, info["size"]]


def _last_copy(url: str, folder: Path, error: Exception) -> Path:
    copies = sorted(folder.glob("*.reeltag"), key=lambda copy: copy.stat().st_mtime)
    if not copies:
        what = f"cannot be reached ({describe_error(error)}), and there is no copy in {cache_folder()}"
        raise ArtifactError(f"{url}: {what}; check the URL and the network") from error
    logger.warning(
        "%s: cannot be reached (%s); using the copy in the cache, %s", url, describe_error(error), copies[-1]
    )
    return copies[-1]
