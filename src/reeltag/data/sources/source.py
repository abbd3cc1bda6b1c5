"""Features in files that are not shards: recognise the files and open them as a source of videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.kinds import LFS, NPY, NPZ, PAGE, PICKLE, recognise
from reeltag.data.sources.npy import NumpyFiles
from reeltag.data.sources.videos import Source, SourceVideo

__all__ = ["Source", "SourceVideo", "open_source", "read_videos", "recognise"]

_READERS = {NPY: NumpyFiles, NPZ: NumpyFiles}
_REFUSED = {
    LFS: "is a Git LFS pointer, not the file; fetch it with `git lfs pull`",
    PAGE: "is a web page or XML, not the file; download it again",
    PICKLE: "is a pickle, which can run any program and is never read; save its arrays with numpy.savez",
}


def open_source(path: Path | Sequence[Path], features: Sequence[str] = ()) -> Source:
    """Open files of features, recognised by their content.

    Args:
        path: a file, a folder that is searched with its subfolders, or several files of one kind. Hidden files are
            passed over.
        features: names of the features to read; by default all.

    Raises:
        UsageError: there is no file of features, or there are several kinds.
    """
    if isinstance(path, Path) and path.is_dir():
        root, files = path, sorted(_visible(path))
    else:
        files = [path] if isinstance(path, Path) else list(path)
        root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    kinds = {file: recognise(file) for file in files}
    readers = {_READERS[kind] for kind in kinds.values() if kind in _READERS}
    named = f"{root}: " if len(files) != 1 else f"{files[0]}: "
    if len(readers) != 1:
        found = sorted({str(kind) for kind in kinds.values()})
        raise UsageError(f"{named}needs files of features of one kind, but has {', '.join(found) or 'none'}")
    (reader,) = readers
    chosen = []
    for file, kind in kinds.items():
        if kind in _READERS:
            chosen.append(file.relative_to(root).as_posix())
        elif kind in _REFUSED:
            raise UsageError(f"{file}: {_REFUSED[kind]}")
    return reader(root, tuple(chosen), tuple(features))


def read_videos(source: Source) -> Iterator[SourceVideo]:
    """Yield all videos of a source in order.

    Raises:
        DataError: a video that cannot be read, or an id that occurred before.
    """
    seen: set[str] = set()
    for part in source.parts():
        for video in source.read(part):
            if video.id in seen:
                raise DataError(f"id {video.id!r} occurs already before; give each video its own", file=video.place)
            seen.add(video.id)
            yield video


def _visible(folder: Path) -> Iterable[Path]:
    for file in folder.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file
