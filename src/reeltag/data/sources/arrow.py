"""Parquet, Arrow IPC, Feather and folders of Hugging Face's `datasets`, read by pyarrow and datasets: a row a video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from reeltag.core.environment import install_command
from reeltag.core.errors import DataError, ReeltagError, UsageError
from reeltag.data.class_labels import DAMAGE, class_names, import_datasets, named_classes, names_of
from reeltag.data.sources.conversion import Array
from reeltag.data.sources.videos import (
    IDS,
    LABELS,
    LENGTHS,
    Files,
    SourceVideo,
    as_id,
    field,
    video_from,
    without_suffix,
)

BATCH_ROWS = 32  # videos in memory
SPLIT_ROWS = 256  # of a part of a `datasets` folder


@dataclass(frozen=True)
class ParquetFiles(Files):
    """Parquet files; a part is a row group."""

    wanted: tuple[str, ...] = ()
    kind = "Parquet"

    def parts(self) -> Sequence[str]:
        """Return the row groups of each file, such as "film.parquet#0"."""
        found = []
        for name in self.names:
            with _errors(self.root / name), self._open(name) as file:
                found += [f"{name}#{group}" for group in range(file.num_row_groups)]
        return found

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a row group.

        Raises:
            DataError: the file is damaged, or a row is no video.
        """
        name, _, group = part.rpartition("#")
        with _errors(self.root / name), self._open(name) as file:
            columns = _needed(file.schema_arrow.names, self.wanted)
            before = sum(file.metadata.row_group(number).num_rows for number in range(int(group)))
            batches = file.iter_batches(BATCH_ROWS, row_groups=[int(group)], columns=columns)
            names = class_names(file.schema_arrow, self.root / name)
            yield from _videos(batches, self.root / name, before, self.wanted, names)

    def _open(self, name: str) -> Any:
        from pyarrow.parquet import ParquetFile

        with _errors(self.root / name):
            return ParquetFile(self.root / name, memory_map=True, page_checksum_verification=True)


@dataclass(frozen=True)
class ArrowFiles(Files):
    """Arrow IPC files and streams, and Feather files; a part is a file."""

    wanted: tuple[str, ...] = ()
    kind = "Arrow"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a file.

        Raises:
            DataError: the file is damaged, or a row is no video.
        """
        path = self.root / part
        with _errors(path):
            batches = _ipc_batches(path)
            first = next(batches, None)
            if first is not None:
                names = class_names(first.schema, path)
                yield from _videos(chain([first], batches), path, 0, self.wanted, names)


@dataclass(frozen=True)
class DatasetsFolder:
    """A folder that `Dataset.save_to_disk` of Hugging Face's `datasets` wrote; a part is a range of rows."""

    folder: Path
    wanted: tuple[str, ...] = ()
    kind = "datasets"

    def parts(self) -> Sequence[str]:
        """Return ranges of rows, such as "0-256"."""
        count = len(self._open())
        return [f"{begin}-{min(begin + SPLIT_ROWS, count)}" for begin in range(0, count, SPLIT_ROWS)]

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a range.

        Raises:
            DataError: the folder is damaged, or a row is no video.
        """
        begin, end = map(int, part.split("-"))
        with _errors(self.folder):
            rows = self._open()
            rows = rows.select_columns(_needed(rows.column_names, self.wanted)).with_format("arrow")
            tables = (rows[at : min(at + BATCH_ROWS, end)] for at in range(begin, end, BATCH_ROWS))
            batches = (batch for table in tables for batch in table.to_batches())
            yield from _videos(batches, self.folder, begin, self.wanted, names_of(rows.features))

    def _open(self) -> Any:
        datasets = import_datasets()
        with _errors(self.folder, *DAMAGE):
            return datasets.Dataset.load_from_disk(str(self.folder))


@contextmanager
def _errors(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of pyarrow, and of some more types, within the block into one message.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: the file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"Parquet and Arrow need pyarrow ({error}): {install_command('import')}") from error
    try:
        yield
    except ReeltagError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, *more) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot be read ({reason}); copy or write it again", file=str(path)) from error


def _ipc_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:  # a batch may hold thousands of videos
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            with pyarrow.ipc.open_file(file) as reader:
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)
        else:
            with pyarrow.ipc.open_stream(file) as reader:
                yield from reader


def _needed(columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the columns to read: the wanted features and the columns beside them that mean something, or all.

    All are read if no feature is wanted, and if none of the wanted is there, so that a message names those that are.
    """
    roles = (*IDS, *LABELS, *LENGTHS)
    structs = {name.partition(".")[0] for name in wanted}
    features = {name for name in columns if name in wanted or name in structs}
    return [name for name in columns if not features or name in features or name.lower() in roles]


def _videos(
    batches: Iterator[Any], path: Path, first: int, wanted: Sequence[str], names: Mapping[str, Sequence[str]]
) -> Iterator[SourceVideo]:
    """Yield the video of each row of record batches.

    Args:
        batches: of one file.
        path: of the file; where no column holds ids but one holds labels, NAME:ROW is the id.
        first: number of the first row.
        wanted: names of the features to read; by default all.
        names: of the classes, by column of labels.

    Raises:
        DataError: a row is no video.
    """
    import pyarrow

    number = first
    for batch in batches:
        batch.validate(full=True)  # the offsets of a damaged file would end the process
        table = pyarrow.Table.from_batches([batch]).flatten()
        if twice := [name for name, times in Counter(table.column_names).items() if times > 1]:
            raise DataError(f"has the column {twice[0]!r} twice; rename one", file=str(path))
        columns = {name: _cells(table.column(name), name, path) for name in table.column_names}
        ids = field([each.name for each in table.schema if not _is_list(each.type)], IDS)
        if ids is None:
            _check_without_ids(table.schema, path)
        for row in range(table.num_rows):
            place = f"{path}, row {number}"
            fields = {}
            for name, cells in columns.items():
                if name != ids and (value := cells(row, place)) is not None:
                    fields[name] = named_classes(value, names[name], place) if name in names else value
            given = f"{without_suffix(path.name)}:{number}" if ids is None else as_id(columns[ids](row, place))
            if given is None:
                raise DataError(f"has no id in the column {ids!r}; give it one", file=place)
            yield video_from(fields, given, place, wanted)
            number += 1


def _check_without_ids(schema: Any, path: Path) -> None:
    """Refuse a table without ids, unless it has labels and nothing that may be ids, such as the index of pandas.

    Raises:
        DataError: it has no labels, or texts.
    """
    from pyarrow import types

    if field(schema.names, LABELS) is None:
        raise DataError(f"has no column of ids, such as video_id; it has {', '.join(schema.names)}", file=str(path))
    texts = [each.name for each in schema if types.is_string(each.type) or types.is_large_string(each.type)]
    if rest := [name for name in texts if name.lower() not in LABELS]:
        raise DataError(f"has videos without ids; are they {rest[0]!r}? Call them video_id", file=str(path))


def _cells(column: Any, name: str, path: Path) -> Any:
    """Return a function of a row's number and place that gives a cell: an array, a list of labels or one value.

    Raises:
        DataError: the column holds features in a form that has no numbers, such as bytes.
    """
    import pyarrow
    from pyarrow import types

    chunk = column.chunk(0) if column.num_chunks else pyarrow.array([], column.type)
    if isinstance(chunk.type, pyarrow.FixedShapeTensorType):
        valid, whole = chunk.is_valid().to_numpy(zero_copy_only=False), chunk.drop_null()
        if whole.storage.flatten().null_count:  # to_numpy_ndarray would give any values for these
            raise DataError(f"{name!r} has a null among its values; correct it or leave the video out", file=str(path))
        tensors, at = whole.to_numpy_ndarray(), valid.cumsum() - 1
        return lambda row, place: tensors[at[row]] if valid[row] else None
    if isinstance(chunk, pyarrow.ExtensionArray):  # such as Array2D of datasets
        chunk = chunk.storage
    role = name.lower() in (*LABELS, *LENGTHS) or (name.lower() in IDS and not _is_list(chunk.type))
    if not role and _is_list(chunk.type):
        return lambda row, place: _array(chunk[row], name, place)
    if not role and (_is_bytes(chunk.type) or types.is_nested(chunk.type)):
        raise _no_numbers(chunk.type, name, str(path))
    return lambda row, place: chunk[row].as_py()


def _no_numbers(kind: Any, name: str, place: str) -> DataError:
    reason = f"the column {name!r} holds {kind}, which does not say what numbers there are"
    return DataError(f"{reason}; store lists of uint8 or float32, or choose other features", file=place)


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _array(cell: Any, name: str, place: str) -> Array | None:
    """Return a cell's list of numbers [N], or of lists of numbers [T, D], as an array; None for an empty cell.

    Raises:
        DataError: a null in the list, frames of different widths, or something else than numbers.
    """
    from pyarrow import types

    values = cell.values
    if values is None:
        return None
    shape = [len(values)]
    while _is_list(values.type):
        if values.null_count:
            raise DataError(f"{name!r} has a frame that is null; correct it or leave the video out", file=place)
        widths = set(values.value_lengths().to_pylist())
        if len(widths) > 1:
            listed = " and ".join(map(str, sorted(widths)[:2]))
            raise DataError(f"{name!r} has frames of {listed} values; all need the same number", file=place)
        shape.append(widths.pop() if widths else 0)
        values = values.flatten()
    if values.null_count:
        raise DataError(f"{name!r} has a null among its values; correct it or leave the video out", file=place)
    if len(shape) == 1 and (types.is_string(values.type) or types.is_large_string(values.type)):
        return None  # a list of texts is no feature
    if not (types.is_integer(values.type) or types.is_floating(values.type)):
        raise _no_numbers(cell.type, name, place)
    return np.array(values.to_numpy(zero_copy_only=False)).reshape(shape)
