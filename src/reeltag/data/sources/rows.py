"""Tables of videos: arrays whose first dimension counts the videos, such as frames padded to one length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reeltag.core.errors import DataError
from reeltag.data.sources.videos import IDS, LABELS, LENGTHS, SourceVideo, as_id, field, video_from

BLOCK_BYTES = 1 << 25  # of rows that are read at once


def is_table(columns: Mapping[str, Any], wanted: Sequence[str] = ()) -> bool:
    """Return True if arrays are columns of a table with a row a video: one has three dimensions, or there are ids [N].

    Args:
        columns: arrays, or anything with their `shape`.
        wanted: names of the features to read, whose dimensions alone count; by default all.
    """
    features = [column for key, column in columns.items() if not wanted or key in wanted]
    return _ids(columns) is not None or any(len(column.shape) == 3 for column in features)


def row_count(columns: Mapping[str, Any], place: str) -> int:
    """Return N, the number of rows of a table.

    Raises:
        DataError: the columns disagree.
    """
    counts = {key: column.shape[0] for key, column in _columns(columns).items()}
    first = _ids(columns) or next(key for key, column in columns.items() if len(column.shape) == 3)
    for key, count in counts.items():
        if count != counts[first]:
            raise DataError(f"{key!r} has {count:,} rows, but {first!r} has {counts[first]:,}", file=place)
    return int(counts[first])


def read_rows(
    columns: Mapping[str, Any], rows: range, name: str, place: str, wanted: Sequence[str] = ()
) -> Iterator[SourceVideo]:
    """Yield the videos of some rows of a table.

    Args:
        columns: arrays [N, …] that can be sliced; one of `IDS` holds the ids. Only where there are labels may they be
            missing; then a row's id is NAME:ROW.
        rows: consecutive rows.
        name: of the table.
        place: for messages.
        wanted: names of the features to read; by default all.

    Raises:
        DataError: a row that is no video, or a table without ids and labels.
    """
    known = _columns(columns)
    texts = [key for key, column in columns.items() if len(column.shape) == 1 and key not in known]
    features = known.keys() & set(wanted)  # none: all are read, and a message names them
    columns = {key: column for key, column in known.items() if not features or _needed(key, wanted)}
    ids = _ids(columns)
    if "y" in columns and field(list(columns), LABELS) is None:
        columns["labels"] = columns.pop("y")
    if ids is None and (texts or field(list(columns), LABELS) is None):
        how = f"are they {texts[0]!r}? Call them video_id" if texts else "add an array video_id with an entry a row"
        raise DataError(f"has videos without ids; {how}", file=place)
    row_bytes = sum(np.dtype(column.dtype).itemsize * int(np.prod(column.shape[1:])) for column in columns.values())
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for begin in range(rows.start, rows.stop, step):
        block = {key: column[begin : min(begin + step, rows.stop)] for key, column in columns.items()}
        for number in range(min(step, rows.stop - begin)):
            here = f"{place}, row {begin + number}"
            fields = {key: values[number] for key, values in block.items() if key != ids}
            given = f"{name}:{begin + number}" if ids is None else as_id(block[ids][number])
            if given is None:
                raise DataError(f"its id in {ids!r} is neither text nor a whole number; give it one", file=here)
            yield video_from(fields, given, here, wanted)


def _ids(columns: Mapping[str, Any]) -> str | None:
    """Return the name of the column of ids; an array of features may have such a name too, as `video`."""
    return field([key for key, column in columns.items() if len(column.shape) == 1], IDS)


def _columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out columns that are neither ids, labels, numbers of frames nor arrays of numbers, such as notes."""
    roles = (*IDS, *LABELS, *LENGTHS)
    return {
        key: column
        for key, column in columns.items()
        if len(column.shape) > 0 and (key.lower() in roles or _has_numbers(column.dtype))
    }


def _has_numbers(dtype: np.dtype[Any]) -> bool:
    """Return True for numbers, and for HDF5's lists of numbers of different lengths, which h5py marks in the dtype."""
    lists: Mapping[str, Any] = dtype.metadata or {}
    return dtype.kind not in "SUO" or isinstance(lists.get("vlen"), np.dtype)


def _needed(key: str, wanted: Sequence[str]) -> bool:
    return key in wanted or key == "y" or key.lower() in (*IDS, *LABELS, *LENGTHS)
