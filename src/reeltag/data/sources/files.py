"""Find files of features that are not shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import Patterns, as_strings, join_path, match_paths
from reeltag.data.formats.kinds import LFS, PAGE, PICKLE, TFRECORD, recognise
from reeltag.data.sources.source import open_source
from reeltag.data.sources.videos import Source

_NO_FEATURES = {None, TFRECORD, LFS, PAGE, PICKLE}


def find_source(patterns: Patterns, root: Path | str | None = None) -> list[Path]:
    """Return the files that some paths or glob patterns name, sorted by name within a pattern, or one folder.

    Args:
        patterns: one or several.
        root: folder that relative patterns start from.

    Raises:
        UsageError: a pattern matches nothing or is a URL, or there is a folder beside other paths.
    """
    found: dict[Path, None] = {}
    for pattern in _expanded(patterns, root):
        if is_url(place := join_path(root, pattern)):
            raise UsageError(f"{place}: only shards are read from URLs; download these features first")
        if not (matches := _matching(pattern, root)):
            raise UsageError(f"{place}: there is no such file or folder; give one, or a glob pattern in quotes")
        found |= dict.fromkeys(matches)
    if len(found) > 1 and (folder := next((path for path in found if path.is_dir()), None)):
        raise UsageError(f"{folder}: is a folder beside other paths; give one folder, or files")
    return list(found)


def find_features(patterns: Patterns, root: Path | str | None = None) -> list[Path]:
    """Return what `find_source` does if patterns name features that are not shards; nothing if they name shards.

    The first match of each pattern tells.

    Raises:
        UsageError: some patterns name features, and others do not.
    """
    given = _expanded(patterns, root)
    others = [pattern for pattern in given if not any(map(_holds_features, _matching(pattern, root)[:1]))]
    if len(others) == len(given):
        return []
    if others:
        raise UsageError(f"{others[0]}: is not of the kind of the other files; give features of one kind, or shards")
    return find_source(patterns, root)


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


def _expanded(patterns: Patterns, root: Path | str | None) -> list[str]:
    """Return patterns, those with braces such as `films-{000..010}.tar` expanded as WebDataset does.

    Raises:
        UsageError: webdataset is not installed.
    """
    found: list[str] = []
    for pattern in as_strings(patterns):
        place = join_path(root, pattern)
        if "{" not in pattern or is_url(place) or Path(place).exists():
            found.append(pattern)
            continue
        try:
            from webdataset.shardlists import expand_urls
        except ImportError as error:
            raise UsageError(f"{place}: braces need webdataset ({error}): {install_command('import')}") from error
        found += expand_urls(pattern)
    return found


def _matching(pattern: str, root: Path | str | None) -> list[Path]:
    """Return the local files and folders that match a pattern; none for a URL."""
    place = join_path(root, pattern)
    if is_url(place):
        return []
    return match_paths(root, pattern) if isinstance(root, Path) else match_paths(Path(), place)


def _holds_features(path: Path) -> bool:
    """Return True if a file is of a kind that is read as features, or a folder has such a file and no shard."""
    if not path.is_dir():
        return recognise(path) not in _NO_FEATURES
    kinds = {recognise(file) for file in list_files([path]) if not file.name.startswith(".")}
    return TFRECORD not in kinds and bool(kinds - _NO_FEATURES)
