"""Local cache of remote files: a file is downloaded once, and again when it changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from reeltag.core.errors import ArtifactError
from reeltag.core.remote_files import describe_error, file_system, is_refusal, refusal_error, version
from reeltag.core.storage import atomic_path, content_hash

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the cache folder: $REELTAG_CACHE, or `reeltag` in the user's cache folder."""
    if own := os.environ.get("REELTAG_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reeltag"


def fetch(url: str, check: Callable[[Path], object]) -> Path:
    """Return a local copy of a remote file.

    If the server cannot be reached, the last copy is used and a warning is logged.

    Args:
        url: http(s)://, or of any other file system that fsspec knows.
        check: called with the new file before it enters the cache; raises ArtifactError if the file is bad.

    Raises:
        ArtifactError: the file does not exist, its download was incomplete, or `check` refused it.
        UsageError: no installed library reads such URLs, or the cache cannot be written.
    """
    # fsspec's own file cache assumes that files behind HTTP never change, and needs the network even for a cached copy.
    filesystem, path = file_system(url)
    folder = cache_folder() / content_hash(url)[:16]
    try:
        state = _version(filesystem, path)
    except Exception as error:  # every file system raises its own exception classes
        if is_refusal(error):
            raise ArtifactError(str(refusal_error(url, error))) from error
        return _last_copy(url, folder, error)
    target = folder / f"{content_hash(state)[:16]}.reeltag"
    if state is not None and target.exists():
        with suppress(OSError):  # the cache may belong to another user
            target.touch()  # makes it the newest copy, which is used when the network is down
        return target
    with atomic_path(target) as temporary:
        try:
            filesystem.get_file(path, str(temporary))
        except Exception as error:
            if not is_refusal(error) and any(folder.glob("*.reeltag")):
                return _last_copy(url, folder, error)
            raise ArtifactError(f"{url}: was not downloaded completely ({describe_error(error)}); try again") from error
        try:
            check(temporary)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(temporary), url)) from error
    return target


def _version(filesystem: Any, path: str) -> object:
    """Return the version that the server reports for the file, or None, so that it is downloaded again."""
    info = filesystem.info(path)
    if info["type"] != "file":
        raise FileNotFoundError("is a folder, device or pipe, not a file")
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
