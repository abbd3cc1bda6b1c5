"""HDF5 files, read by h5py: a group or a dataset a video, a file a video, or a table of videos padded to one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reeltag.core.environment import install_command
from reeltag.core.errors import DataError, UsageError
from reeltag.data.sources.rows import is_table, read_rows, row_count
from reeltag.data.sources.videos import (
    FEATURES,
    IDS,
    LABELS,
    LENGTHS,
    Files,
    SourceVideo,
    as_labels,
    field,
    video_from,
    without_suffix,
)

MAX_PARTS = 64  # of a file
MIN_VIDEOS = 64  # of a part
MAX_DEPTH = 8  # of groups in groups
CACHE_BYTES = 1 << 26  # of a dataset's chunks, so that a chunk of many videos is decompressed once
# Names that a feature has rather than a video.
_FEATURE_NAMES = {FEATURES, "feature", "x", "data", "embedding", "embeddings", "rgb", "audio", "frames"}


Layout = Literal["table", "features", "videos"]


@dataclass(frozen=True)
class HDF5Files(Files):
    """HDF5 files, whose first groups of datasets tell how videos are stored.

    A group with ids [N], or with an array [N, T, D], is a table of videos. Else, if groups have datasets of the same
    names, each group is a video with these features; its name is the id, and without groups that of the file. Else each
    dataset is a video.
    """

    wanted: tuple[str, ...] = ()
    kind = "HDF5"

    def parts(self) -> Sequence[str]:
        """Return ranges of videos of each file, such as "film.h5#0-64"."""
        found = []
        layout = self._layout()
        for name in self.names:
            count = sum(count for _, count in _counted_groups(self.root / name, layout))
            step = max(MIN_VIDEOS, -(-count // MAX_PARTS))
            found += [f"{name}#{begin}-{min(begin + step, count)}" for begin in range(0, count, step)]
        return found

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a range.

        Raises:
            DataError: the file is damaged, or holds something that is no video.
        """
        name, _, numbers = part.rpartition("#")
        begin, end = map(int, numbers.split("-"))
        layout = self._layout()
        with _opened(self.root / name) as file:
            for path, count in _counted_groups(self.root / name, layout):
                if here := range(max(0, begin), min(count, end)):
                    yield from self._videos(file[path], here, name, layout)
                begin, end = begin - count, end - count

    def _layout(self) -> Layout:
        changed = (self.root / self.names[0]).stat().st_mtime_ns
        return _find_layout(self.root, self.names, self.wanted, changed)

    def _videos(self, group: Any, numbers: range, name: str, layout: Layout) -> Iterator[SourceVideo]:
        place = _place(group)
        path = group.name.strip("/")
        label = path or without_suffix(name)
        if layout == "table":
            columns = _datasets(group)
            for key, column in columns.items():
                _check_values(column, key, place, partly=field(list(columns), LENGTHS) is not None)
            yield from read_rows(columns, numbers, label, place, self.wanted)
        elif layout == "videos":
            for key, dataset in _datasets(group, numbers).items():
                here = f"{place.rstrip('/')}/{key}"
                fields = {FEATURES: _values(dataset, key, here), **_attributes(dataset)}
                yield video_from(fields, f"{path}/{key}" if path else key, here, self.wanted)
        else:
            columns, roles = _datasets(group), (*IDS, *LABELS, *LENGTHS)
            features = columns.keys() & set(self.wanted)  # none: all are read, and a message names them
            needed = (key for key in columns if not features or key in features or key.lower() in roles)
            fields = {key: _values(columns[key], key, place) for key in needed}
            yield video_from(_attributes(group) | fields, label, place, self.wanted)


@lru_cache(maxsize=16)
def _find_layout(root: Path, names: Sequence[str], wanted: Sequence[str], changed: int) -> Layout:
    """Tell how videos are stored by the first two groups of all files.

    Raises:
        DataError: it is not clear.
    """
    found = ((name, path) for name in names for path in _groups(root / name))
    first: list[dict[str, tuple[int, ...]]] = []
    for name, path in islice(found, 2):
        with _opened(root / name) as file:
            columns = _datasets(file[path])
            if is_table(columns, wanted):
                return "table"
            if any(field(list(columns), role) for role in (IDS, LABELS, LENGTHS)):
                return "features"
            first.append({key: item.shape for key, item in columns.items()})
    if not first:
        raise DataError("has no datasets", file=str(root / names[0]))
    if len(first) == 2:
        return "features" if set(first[0]) & set(first[1]) else "videos"
    (shapes,) = first
    if _FEATURE_NAMES & {key.lower() for key in shapes}:
        return "features"
    if len({shape[1:] if len(shape) > 1 else shape for shape in shapes.values()}) == 1:
        return "videos"
    if len({shape[:1] for shape in shapes.values()}) == 1:
        return "features"
    listed = ", ".join(f"{key} {list(shape)}" for key, shape in islice(shapes.items(), 3))
    reason = f"{listed}: neither videos of one width nor features of one video"
    raise DataError(f"{reason}; give each video a group of its own", file=str(root / names[0]))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file, and turn errors of the HDF5 library within the block into one message.

    Raises:
        UsageError: h5py is not installed.
        DataError: the file or something in it cannot be read.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError(f"HDF5 needs h5py ({error}): {install_command('import')}") from error
    try:
        with h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES, locking="best-effort") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise DataError(f"cannot be read ({reason}); copy or write it again", file=str(path)) from error


def _groups(path: Path) -> tuple[str, ...]:
    """Return the groups that hold features directly, in the order of their names; a file is listed once."""
    return _list_groups(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _list_groups(path: Path, changed: int) -> tuple[str, ...]:
    with _opened(path) as file:
        return tuple(_walk(file))


def _walk(group: Any, depth: int = 0) -> Iterator[str]:
    import h5py

    if depth > MAX_DEPTH:
        raise DataError(f"groups lie more than {MAX_DEPTH} deep; does a link lead back?", file=_place(group))
    kinds = {key: group.get(key, getclass=True) for key in sorted(group)}
    below = [key for key, kind in kinds.items() if kind is h5py.Group]
    for key in kinds:
        if below and key not in below and len(group[key].shape or ()) > 1:
            reason = f"has the dataset {key!r} beside groups; move it into a group of its own"
            raise DataError(reason, file=_place(group))
    if kinds and not below:
        yield group.name
    for key in below:
        yield from _walk(group[key], depth + 1)


def _counted_groups(path: Path, layout: Layout) -> list[tuple[str, int]]:
    """Return the groups of a file with their numbers of videos."""
    groups = _groups(path)
    if layout == "features":
        return [(group, 1) for group in groups]
    with _opened(path) as file:
        if layout == "videos":
            return [(group, len(file[group])) for group in groups]
        return [(group, row_count(_datasets(file[group]), _place(file[group]))) for group in groups]


def _datasets(group: Any, numbers: range | None = None) -> dict[str, Any]:
    """Return the datasets of a group that has no groups, in the order of their names, or a range of them.

    Those that only number a dimension, such as the times of frames that netCDF stores, are left out.

    Raises:
        DataError: one holds nothing.
    """
    keys = sorted(group)
    found = {key: group[key] for key in (keys[numbers.start : numbers.stop] if numbers else keys)}
    for key, item in found.items():
        if item.shape is None:
            raise DataError(f"{key!r} holds nothing; write it again or remove it", file=_place(group))
    roles = (*IDS, *LABELS, *LENGTHS)
    return {key: item for key, item in found.items() if key.lower() in roles or not item.is_scale}


def _place(group: Any) -> str:
    return f"{group.file.filename}: {group.name}"


def _attributes(item: Any) -> dict[str, Any]:
    """Return the attributes that are an id, labels or a number of frames."""
    return {key: value for key, value in item.attrs.items() if key.lower() in (*IDS[:2], *LABELS, *LENGTHS)}


def _values(dataset: Any, name: str, place: str) -> Any:
    """Read a dataset: an array, or the text or list of a string or label."""
    _check_values(dataset, name, place, partly=False)
    import h5py

    values = dataset[()]
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    return as_labels(values) if is_text or name.lower() in LABELS else values


def _check_values(dataset: Any, name: str, place: str, *, partly: bool) -> None:
    """Refuse a dataset whose values are not those that were meant.

    They are packed by a scale and an offset, were never written, or are mapped from files that are missing.

    Args:
        dataset: the dataset.
        name: of the dataset, for messages.
        place: for messages.
        partly: some of its chunks may be missing, such as those of frames that are padding.

    Raises:
        DataError: values are missing.
    """
    if packed := {"scale_factor", "add_offset"} & set(dataset.attrs):
        reason = f"{name!r} is packed by the attribute {min(packed)!r}, which is not applied"
        raise DataError(f"{reason}; store its values unpacked", file=place)
    if not dataset.size:
        return
    if dataset.is_virtual:
        _check_sources(dataset, name, place)
        return
    if dataset.chunks is None or partly:
        missing = dataset.id.get_storage_size() == 0 and dataset.external is None
    else:
        chunks = np.prod([-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)])
        missing = dataset.id.get_num_chunks() < chunks
    if missing:
        raise DataError(f"{name!r} was created, but some of it never written; write the file again", file=place)


def _check_sources(dataset: Any, name: str, place: str) -> None:
    """Refuse a virtual dataset whose values are not all in some dataset of some file.

    Raises:
        DataError: values are missing.
    """
    import h5py

    folder = Path(dataset.file.filename).parent
    mapped = 0
    for source in dataset.virtual_sources():
        mapped += source.vspace.get_select_npoints()
        path = folder / source.file_name if source.file_name != "." else Path(dataset.file.filename)
        found = path.is_file()
        if found:
            with h5py.File(path, "r", locking="best-effort") as file:
                found = source.dset_name in file
        if not found:
            what = f"{source.dset_name} of {source.file_name}"
            raise DataError(f"{name!r} takes values from {what}, which is missing; put it back", file=place)
    if mapped < dataset.size:
        raise DataError(f"{name!r} takes only some of its values from other datasets; write it again", file=place)
