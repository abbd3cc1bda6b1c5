"""Features in files that are not shards: recognise the files and open them as a source of videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats import kinds
from reeltag.data.formats.kinds import recognise
from reeltag.data.sources.arrow import ArrowFiles, DatasetsFolder, ParquetFiles
from reeltag.data.sources.hdf5 import HDF5Files
from reeltag.data.sources.npy import NumpyFiles
from reeltag.data.sources.text import LinesFiles, TableFiles
from reeltag.data.sources.tfrecords import CompressedRecords, MessageFiles, first_bytes
from reeltag.data.sources.videos import Source, SourceVideo
from reeltag.data.sources.webdataset import WebDatasetFiles

__all__ = ["Source", "SourceVideo", "open_source", "read_videos", "recognise"]

_READERS: dict[str, type[Any]] = {
    kinds.NPY: NumpyFiles,
    kinds.NPZ: NumpyFiles,
    kinds.HDF5: HDF5Files,
    kinds.PARQUET: ParquetFiles,
    kinds.ARROW: ArrowFiles,
    kinds.TAR: WebDatasetFiles,
    kinds.MESSAGE: MessageFiles,
    kinds.TEXT: TableFiles,
    kinds.JSON: LinesFiles,
}
_INSIDE = {kinds.TFRECORD: CompressedRecords, kinds.TAR: WebDatasetFiles}  # of gzip and zlib
_OF_TEXT = {TableFiles, LinesFiles}  # beside other files of a folder these are labels, notes and the like
READABLE = (".npy", ".npz", "HDF5", "Parquet", "Arrow", "datasets folders", "WebDataset", "CSV", "JSON Lines")
_REFUSED = {
    **{kind: f"is a {kind}, not features; {remedy}" for kind, remedy in kinds.NO_FEATURES.items()},
    kinds.TFRECORD: "is a TFRecord file, which needs no import; name it in data.train",
    kinds.ZSTD: "is compressed with zstd; decompress it (`zstd -d`)",
    kinds.ZIP: "is a zip archive; unpack it (`unzip`)",
    kinds.GZIP: "is compressed with gzip; decompress it (`gunzip`)",
    kinds.ZLIB: "is compressed with zlib, and holds no TFRecords",
}


def open_source(path: Path | Sequence[Path], features: Sequence[str] = ()) -> Source:
    """Open files of features, recognised by their content.

    Args:
        path: a file, a folder that is searched with its subfolders, or several files of one kind. Hidden files are
            passed over, and in a folder text beside other kinds, such as a file of labels.
        features: names of the features to read; by default all.

    Raises:
        UsageError: there is no file of features, one is of a kind that is not read, or there are several kinds.
    """
    wanted = tuple(features)
    searched = isinstance(path, Path) and path.is_dir()
    if isinstance(path, Path) and searched:
        if _is_of_datasets(path):
            return DatasetsFolder(path, wanted)
        root, files = path, sorted(_visible(path))
    else:
        files = [path] if isinstance(path, Path) else list(path)
        root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    readers = {file: _reader(file) for file in files}
    if {*readers.values()} - {None} <= _OF_TEXT:  # text that may lie beside shards, such as their manifest
        for file in (file for file, its in readers.items() if its is None and recognise(file) == kinds.TFRECORD):
            raise UsageError(f"{file}: {_refusal(file)}")
    reader = _only(set(readers.values()) - {None}, root, files, searched=searched)
    names = [file.relative_to(root).as_posix() for file, its in readers.items() if its is reader]
    suffixes = {Path(name).suffix for name in names}
    for file, its in readers.items():
        if its is not reader and (not searched or file.suffix in suffixes):
            raise UsageError(f"{file}: {_refusal(file)}")
    source: Source = reader(root, tuple(names), wanted)
    return source


def _only(readers: set[Any], root: Path, files: Sequence[Path], *, searched: bool) -> Any:
    """Return the only reader of files, or of those in a folder that are not text.

    Raises:
        UsageError: there is none, or several.
    """
    if searched and readers - _OF_TEXT:
        readers = readers - _OF_TEXT
    if len(readers) > 1:
        kinds_found = " and ".join(sorted(reader.kind for reader in readers))
        raise UsageError(f"{root}: has files of {kinds_found}; name those of one kind")
    if not readers:
        known = next((file for file in files if recognise(file) in _REFUSED), files[0] if len(files) == 1 else None)
        if known:
            raise UsageError(f"{known}: {_refusal(known)}")
        raise UsageError(f"{root}: has no file of features: {', '.join(READABLE)}")
    return next(iter(readers))


def _reader(file: Path) -> type[Any] | None:
    kind = recognise(file)
    if kind in (kinds.GZIP, kinds.ZLIB):
        return _INSIDE.get(kinds.recognise_content(first_bytes(file)) or "")
    return _READERS.get(kind or "")


def _refusal(file: Path) -> str:
    kind = recognise(file) or ""
    return _REFUSED.get(kind) or (
        f"is no file of features: {', '.join(READABLE)}" if file.stat().st_size else "is empty; write it again"
    )


def _is_of_datasets(path: Path) -> bool:
    """Return True if Hugging Face's `datasets` wrote the folder.

    Raises:
        UsageError: it holds several splits.
    """
    if (path / "dataset_dict.json").is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / "state.json").is_file())
        raise UsageError(f"{path}: holds the splits {', '.join(splits)}; name one, such as {path / splits[0]}")
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


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
