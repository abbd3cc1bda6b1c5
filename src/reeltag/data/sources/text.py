"""Features as text: CSV with a row a frame, and JSON Lines with an object a video or a frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

import numpy as np

from reeltag.core.errors import DataError
from reeltag.core.tables import Row, Table, read_lines, read_table
from reeltag.data.sources.conversion import Array
from reeltag.data.sources.json_values import parse_object
from reeltag.data.sources.videos import (
    FEATURES,
    FRAME_NUMBERS,
    IDS,
    LABELS,
    Files,
    SourceVideo,
    as_id,
    field,
    video_from,
)

_NUMBERED = re.compile(r"(.*?)[_.\-\[ ]*(\d+)\]?")
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)"
_LIST = re.compile(rf"\[?\s*(?:{_NUMBER})(?:[\s,;]+(?:{_NUMBER}))*\s*\]?", re.IGNORECASE)


@dataclass(frozen=True)
class TableFiles(Files):
    """CSV files with a row a frame; the rows of a video follow each other, in the order of its frames.

    Values are in columns that are numbered, such as rgb_0, rgb_1 …, or in one cell as a list. Columns of single numbers
    without a number in their name are one feature together if there is no other.
    """

    wanted: tuple[str, ...] = ()
    kind = "CSV"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a file.

        Raises:
            UsageError: the file is no table.
            DataError: a row is no frame, or frames of a video do not follow each other.
        """
        path = str(self.root / part)
        table = read_table(self.root / part)
        rows = iter(table)
        first = next(rows, None)
        if first is None:
            return
        ids = _id_column(table, first)
        if ids is None:
            reason = f"has no column of ids, such as video_id; it has {', '.join(table.columns)}"
            raise DataError(f"{reason}; for frames, give one row a frame", file=path)
        features = _features(table, first, self.wanted)
        label, order = field(table.columns, LABELS), field(table.columns, FRAME_NUMBERS)
        key = table.columns.index(ids)
        for given, group in groupby(chain([first], rows), lambda row: row.cells[key]):
            frames = list(group)
            place = f"{path}, line {frames[0].line}"
            if not given:
                raise DataError(f"the cell in the column {ids!r} is empty; give the frame's video an id", file=place)
            if order:
                _check_order([row.cells[table.columns.index(order)] for row in frames], place)
            fields: dict[str, Any] = {
                name: _stack([_numbers(row, columns, name, path) for row in frames], name, place)
                for name, columns in features.items()
            }
            if label:
                fields["labels"] = _agreed([row.cells[table.columns.index(label)] for row in frames], place)
            yield video_from(fields, as_id(given) or given, place, self.wanted)


@dataclass(frozen=True)
class LinesFiles(Files):
    """JSON Lines with an object a video, whose features are lists of lists, or an object a frame.

    It is a frame if it numbers one, or if the first two objects have the same id; the frames of a video follow each
    other.
    """

    wanted: tuple[str, ...] = ()
    kind = "JSON Lines"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a file.

        Raises:
            DataError: a line is no object, or no video or frame.
        """
        objects = self._objects(part)
        first = list(islice(objects, 2))
        objects = chain(first, objects)
        if first and (self._number(first[0][1]) or len({_id(*each) for each in first}) < len(first)):
            for given, group in groupby(objects, lambda each: _id(*each)):
                yield self._from_frames(given, list(group))
        else:
            for place, content in objects:
                rest = {key: value for key, value in content.items() if key != _id_field(content)}
                yield video_from(rest, _id(place, content), place, self.wanted)

    def _objects(self, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in read_lines(self.root / part):
            if line.text.strip():
                place = f"{self.root / part}, line {line.number}"
                yield place, parse_object(line.text, place)

    def _number(self, content: Mapping[str, Any]) -> str | None:
        return field([key for key, value in content.items() if not isinstance(value, np.ndarray)], FRAME_NUMBERS)

    def _from_frames(self, given: str, frames: list[tuple[str, dict[str, Any]]]) -> SourceVideo:
        place, first = frames[0]
        number, label = self._number(first), field(list(first), LABELS)
        for here, content in frames:
            if content.keys() != first.keys():
                raise DataError(f"has {', '.join(content)}, but the frame before {', '.join(first)}", file=here)
        if number:
            _check_order([content[number] for _, content in frames], place)
        fields: dict[str, Any] = {
            name: _stack([content[name] for _, content in frames], name, place)
            for name, value in first.items()
            if isinstance(value, np.ndarray)
        }
        if label:
            fields["labels"] = _agreed([content[label] for _, content in frames], place)
        return video_from(fields, given, place, self.wanted)


def _id_field(content: Mapping[str, Any]) -> str | None:
    """Return the name of the id; a feature may have such a name too, as `video`."""
    return field([key for key, value in content.items() if not isinstance(value, np.ndarray)], IDS)


def _id(place: str, content: Mapping[str, Any]) -> str:
    name = _id_field(content)
    if name is None or (given := as_id(content[name])) is None:
        raise DataError(f"has no id, a text such as video_id; it has {', '.join(content)}", file=place)
    return given


def _features(table: Table, first: Row, wanted: Sequence[str]) -> dict[str, list[int]]:
    """Return the columns of each feature, in order.

    Raises:
        DataError: no column holds values, or it is unclear which.
    """
    roles = {_id_column(table, first), field(table.columns, LABELS)}
    numbered: dict[str, dict[int, int]] = {}
    single, features = [], {}
    for index, (column, cell) in enumerate(zip(table.columns, first.cells, strict=True)):
        match = _NUMBERED.fullmatch(column)
        if column in roles or column.lower() in FRAME_NUMBERS:
            continue
        if _is_list(cell):
            features[column] = [index]
        elif match:
            numbered.setdefault(match[1] or FEATURES, {})[int(match[2])] = index
        elif _LIST.fullmatch(cell) or not cell:
            single.append(index)
    for name, columns in numbered.items():
        if any(_LIST.fullmatch(first.cells[index]) for index in columns.values()):  # else these are texts
            features[name] = _in_order(columns, name, str(table.path))
    if not features and any(first.cells[index] for index in single):
        return {FEATURES: single}
    single = [index for index in single if first.cells[index]]
    if single and not wanted:
        name = table.columns[single[0]]
        reason = f"the column {name!r} holds single numbers beside {', '.join(features)}"
        raise DataError(f"{reason}; name it {name}_0 if it is a feature, else remove it", file=str(table.path))
    return {name: columns for name, columns in features.items() if not wanted or name in wanted}


def _id_column(table: Table, first: Row) -> str | None:
    """Return the name of the column of ids; a column of lists may have such a name too, as `video`."""
    cells = zip(table.columns, first.cells, strict=True)
    return field([column for column, cell in cells if not _is_list(cell)], IDS)


def _is_list(cell: str) -> bool:
    return bool(_LIST.fullmatch(cell)) and (len(_split(cell)) > 1 or "[" in cell)


def _in_order(columns: Mapping[int, int], name: str, path: str) -> list[int]:
    """Return columns in the order of their numbers.

    Raises:
        DataError: the numbers have a gap, or begin with neither 0 nor 1.
    """
    numbers = sorted(columns)
    if numbers[0] > 1 or numbers[-1] - numbers[0] >= len(numbers):
        raise DataError(f"the columns of {name!r} are not numbered from 0 or 1 without a gap", file=path)
    return [columns[number] for number in numbers]


def _split(cell: str) -> list[str]:
    return re.split(r"[\s,;]+", cell.strip().strip("[]").strip())


def _numbers(row: Row, columns: Sequence[int], name: str, path: str) -> Array:
    cells, place = [row.cells[column] for column in columns], f"{path}, line {row.line}"
    if len(columns) == 1:
        cells = _split(cell := cells[0])
        separators = {each.strip() for each in re.findall(r"[\s,;]+", cell.strip("[ ]"))}
        if len(separators) > 1 or (separators == {","} and len(cells) == 2 and not re.search(r"[\[\s]", cell)):
            reason = f"{name!r} has the cell {cell[:40]!r}: a decimal comma, or values of their own?"
            raise DataError(f"{reason} Write 1.5 or [1, 5]", file=place)
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise DataError(f"{name!r} has a cell that is no number ({error})", file=place) from error


def _stack(frames: Sequence[Array], name: str, place: str) -> Array:
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        listed = " and ".join(str(shape[0] if shape else 0) for shape in sorted(shapes)[:2])
        raise DataError(f"{name!r} has frames of {listed} values; all need the same number", file=place)
    return np.stack(frames)


def _check_order(numbers: Sequence[Any], place: str) -> None:
    """Refuse frames whose numbers or times do not increase."""
    try:
        values = np.array([float(number) for number in numbers])
    except (TypeError, ValueError) as error:
        raise DataError(f"a frame's number is no number ({error})", file=place) from error
    if wrong := np.flatnonzero(~(np.diff(values) > 0)).tolist():
        reason = f"frame {numbers[wrong[0] + 1]} of the video comes after frame {numbers[wrong[0]]}"
        raise DataError(f"{reason}; sort the rows by video and frame, each once", file=place)


def _agreed(labels: Sequence[Any], place: str) -> Any:
    if any(label != labels[0] for label in labels):
        raise DataError("its frames have different labels; labels are of videos", file=place)
    return labels[0]
