"""Find the files of a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import Patterns, as_strings
from reeltag.data.sources.source import open_source
from reeltag.data.sources.videos import Source


def find_source(patterns: Patterns) -> list[Path]:
    """Return the files that some paths or glob patterns name, sorted by name within a pattern, or one folder.

    Raises:
        UsageError: a pattern matches nothing or is a URL, or there is a folder beside other paths.
    """
    found: dict[Path, None] = {}
    for pattern in as_strings(patterns):
        if is_url(pattern):
            raise UsageError(f"{pattern}: only shards are read from URLs; download these features first")
        path, anchor = Path(pattern), Path(Path(pattern).anchor)
        matches = [path] if path.exists() else sorted(anchor.glob(str(path.relative_to(anchor))))
        if not matches:
            raise UsageError(f"{pattern}: there is no such file or folder; give one, or a glob pattern in quotes")
        found |= dict.fromkeys(matches)
    if len(found) > 1 and (folder := next((path for path in found if path.is_dir()), None)):
        raise UsageError(f"{folder}: is a folder beside other paths; give one folder, or files")
    return list(found)


def open_files(paths: Sequence[Path], features: Sequence[str] = ()) -> Source:
    """Open what `find_source` returned; see `open_source`."""
    return open_source(paths[0] if len(paths) == 1 else paths, features)


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return all files of paths and of the folders among them, sorted within a folder."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        else:
            files.append(path)
    return files
