"""Read files of labels: CSV, JSON, JSON Lines and Parquet, in the forms that `data/labels.py` tells apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import require_regular
from reeltag.core.tables import Line, fault, read_lines, read_table
from reeltag.core.text import counted, first_lines, one_line
from reeltag.core.validation import format_value
from reeltag.data.class_labels import class_names, named_classes
from reeltag.data.labels import Encoding, LabelForm, RawLabels, find_form
from reeltag.data.ratings import CLASSES, ENDS, SCORES, STARTS, Lists
from reeltag.data.vocabulary import Vocabulary, class_number, named, nfc

# Columns by the names that data sets give them, in lower case; the first one that a file has is read.
ID_COLUMNS = (
    *("video_id", "id", "videoid", "__key__", "youtube_id", "ytid", "vid", "file", "filename", "file_name", "fname"),
    *(
        "path",
        "filepath",
        "file_path",
        "video",
        "video_name",
        "audio_name",
        "clip",
        "clip_id",
        "media_id",
        "key",
        "name",
    ),
)
LABEL_COLUMNS = (
    *("labels", "label", "tags", "tag", "classes", "class", "cls", "label_id", "label_ids", "class_id", "class_ids"),
    *("mid", "mids", "positive_labels", "label_name", "label_names", "class_name", "display_name"),
    *("category", "categories", "target", "targets"),
)
START_COLUMNS = ("start", "start_time", "segment_start_times", "segment_start")
END_COLUMNS = ("end", "end_time", "segment_end_times", "segment_end")
RATING_COLUMNS = ("rating", "score", "segment_scores", "segment_score", "confidence", "verified")
OTHER_COLUMNS = ("split", "fold", "subset")  # beside N-hot columns

_NUMBERED = re.compile(r"(labels?|tags?|class|category|target)[ _-]?\d+", re.IGNORECASE)
_ENDING = re.compile(
    r"\.(npy|npz|pb|h5|hdf5|tfrecord|mp4|mkv|webm|avi|mov|m4v|flv|wav|mp3|flac|ogg|m4a)$", re.IGNORECASE
)
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class LabelTable:
    """Labels of the videos of a data set.

    Attributes:
        form: of the labels, with the classes.
        labels: class numbers of each video, ascending, by its id in Unicode's form NFC.
        ratings: of each video's segments, as features of its record, by its id; empty if the file has none.
        remarks: on what was merged or passed over, with counts.
    """

    form: LabelForm
    labels: Mapping[str, tuple[int, ...]] = field(repr=False)
    ratings: Mapping[str, Lists] = field(repr=False)
    remarks: tuple[str, ...]

    @property
    def classes(self) -> int:
        """C."""
        return self.form.classes

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names [C] of the classes; None if they have numbers only."""
        return self.form.vocabulary.names if self.form.vocabulary else None

    def find(self, video_id: str) -> str | None:
        """Return the id by which the file has a video; None if it does not have it.

        Ids are compared in one Unicode form. A file name such as `a.mp4` also stands for the video `a`.
        """
        name = nfc(video_id)
        return name if name in self.labels else self._by_stem.get(name)

    def of(self, video_id: str) -> npt.NDArray[np.int64] | None:
        """Return the class numbers of a video, ascending; None if the file does not have it."""
        name = self.find(video_id)
        return None if name is None else np.array(self.labels[name], np.int64)

    def ratings_of(self, video_id: str) -> Lists:
        """Return the ratings of a video's segments, as features of its record; empty if it has none."""
        return self.ratings.get(self.find(video_id) or "", {})

    @cached_property
    def _by_stem(self) -> Mapping[str, str]:
        """Ids that end as files do, by what is before the ending, where only one begins so."""
        stems = {name: _ENDING.sub("", name) for name in self.labels}
        times = Counter(stems.values())
        return {stem: name for name, stem in stems.items() if times[stem] == 1 and stem != name}


def read_labels(
    path: Path,
    *,
    encoding: Encoding | None = None,
    vocabulary: Vocabulary | None = None,
    classes: int | None = None,
) -> LabelTable:
    """Read a file of labels.

    Args:
        path: CSV with commas, semicolons or tabs; JSON Lines, or a JSON list, with an object a row; JSON with one
            object of labels by id; or Parquet.
        encoding: form of the labels; by default it is found, if only one fits.
        vocabulary: names of the classes; without it, names are numbered in sorted order.
        classes: C; by default that of the vocabulary, or one more than the highest class.

    Raises:
        UsageError: the file cannot be read, has no columns of ids and labels, its labels may be read in two ways,
            or a video's are given twice; the message names the line.
    """
    sheet = _sheet(path)
    if not sheet.rows:
        raise UsageError(f"{path}: has no rows; give one for each video, with its id and labels")
    id_at = sheet.require("ids", ID_COLUMNS)
    times = [sheet.find(START_COLUMNS), sheet.find(END_COLUMNS)]
    rating = sheet.find(RATING_COLUMNS)
    if rating is not None and None in times:
        what = f"the column {sheet.columns[rating]!r} rates labels, and no columns start and end say of which segments"
        raise UsageError(f"{path}: {what}; keep the rows whose labels are present, and remove the column")
    raw = _labels(sheet, id_at, encoding, vocabulary)
    found = [
        RawLabels(place, _id(place, cells[id_at]), labels)
        for (place, cells), labels in zip(sheet.rows, raw.labels, strict=True)
    ]
    form = find_form(found, encoding=raw.encoding, vocabulary=raw.vocabulary, classes=classes, source=str(path))
    if rating is not None:
        used = [*(at for at in times if at is not None), rating]
        return _rated(found, form, [[(sheet.columns[at], cells[at]) for at in used] for _, cells in sheet.rows])
    unread = [name for at, name in enumerate(sheet.columns) if at not in (id_at, *raw.columns)]
    remarks = [f"{counted(len(unread), 'column')} not read: {', '.join(first_lines(unread))}"] if unread else []
    return gather(found, form, several_rows=len(raw.columns) == 1, remarks=remarks)


def gather(
    found: Iterable[RawLabels], form: LabelForm, *, several_rows: bool = False, remarks: Sequence[str] = ()
) -> LabelTable:
    """Gather the labels of each video.

    Args:
        found: labels of a row each.
        form: of the labels.
        several_rows: a video may have several rows, with one label each.
        remarks: on the labels, that the table's begin with.

    Raises:
        UsageError: a video has several rows where it may not, or its labels do not fit the form.
    """
    rows: dict[str, list[int]] = {}
    single: dict[str, tuple[str, bool]] = {}  # place of a video's first row, and if all of its rows have one label
    for each in found:
        numbers = form.numbers(each)
        one = several_rows and form.encoding != "n-hot" and len(numbers) == 1
        place, before = single.get(each.id, ("", True))
        if place and not (one and before):
            how = "give each video one row, or a row for each of its labels"
            raise UsageError(f"{each.place}: {each.id!r} has a row already ({place}); {how}")
        single[each.id] = (place or each.place, one)
        rows.setdefault(each.id, []).extend(numbers)
    labels = {name: tuple(sorted({*numbers})) for name, numbers in rows.items()}
    notes = [*remarks, *(form.vocabulary.remarks if form.vocabulary else ())]
    if repeated := sum(map(len, rows.values())) - sum(map(len, labels.values())):
        notes.append(f"{counted(repeated, 'label')} given twice, merged")
    if bare := sum(not numbers for numbers in labels.values()):
        notes.append(f"{counted(bare, 'video')} without labels")
    if unused := form.classes - len({number for numbers in labels.values() for number in numbers}):
        notes.append(f"{unused:,} of {form.classes:,} classes without a video")
    return LabelTable(form, labels, {}, tuple(notes))


def _rated(found: Sequence[RawLabels], form: LabelForm, rows: Sequence[Sequence[tuple[str, Any]]]) -> LabelTable:
    """Gather the ratings of each video's segments; its labels are those that are present in one of them.

    Args:
        found: the label of each row.
        form: of the labels.
        rows: start, end and rating of each row, with the names of their columns.
    """
    ratings: dict[str, dict[str, list[float]]] = {}
    for each, cells in zip(found, rows, strict=True):
        numbers = form.numbers(each)
        if form.encoding == "n-hot" or len(numbers) != 1:
            raise UsageError(f"{each.place}: {each.id!r}: a rating is of one label; give a row for each")
        lists = ratings.setdefault(each.id, {name: [] for name in (STARTS, ENDS, SCORES, CLASSES)})
        values = [_amount(each, column, cell) for column, cell in cells]
        for name, value in zip(lists, (*values, numbers[0]), strict=True):
            lists[name].append(value)
    labels = {
        name: tuple(sorted({int(label) for label, score in zip(lists[CLASSES], lists[SCORES], strict=True) if score}))
        for name, lists in ratings.items()
    }
    return LabelTable(form, labels, ratings, ())


def _amount(labels: RawLabels, column: str, cell: Any) -> int:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = -1
    if value < 0 or not value.is_integer():
        raise UsageError(f"{labels.place}: {labels.id!r}: {column} is {cell!r}; give a whole number")
    return int(value)


@dataclass(frozen=True)
class _Raw:
    """Labels as the columns hold them.

    Attributes:
        columns: indices of the columns that were read.
        labels: of each row.
        encoding: as far as it is known.
        vocabulary: as far as it is known.
    """

    columns: Sequence[int]
    labels: Iterable[Any]
    encoding: Encoding | None
    vocabulary: Vocabulary | None


def _labels(sheet: _Sheet, id_at: int, encoding: Encoding | None, vocabulary: Vocabulary | None) -> _Raw:
    """Find the columns of labels: one, several with a label each, or one for each class."""
    called = sheet.find(LABEL_COLUMNS)
    skipped = (id_at, *(at for at, name in enumerate(sheet.columns) if name.casefold() in OTHER_COLUMNS))
    rest = [at for at in range(len(sheet.columns)) if at not in skipped]
    several = [at for at in rest if _NUMBERED.fullmatch(sheet.columns[at])]
    odd = next(
        ((place, at, cells[at]) for place, cells in sheet.rows for at in rest if _present(cells[at]) is None), None
    )
    if encoding == "n-hot" and odd is None and (len(rest) > 1 or called is None):
        return _column_a_class(sheet, rest, vocabulary)
    if several:
        several = [at for at in rest if at in several or at == called]
        rows = ([cells[at] for at in several if cells[at] not in (None, "")] for _, cells in sheet.rows)
        return _Raw(several, rows, encoding, vocabulary)
    if odd is None and encoding is None:
        if called is None and len(rest) > 1:
            return _column_a_class(sheet, rest, vocabulary)
        if (called is None) == (len(rest) == 1):
            what = "all columns beside the ids hold only 0 and 1, which may be N-hot or the classes 0 and 1"
            raise UsageError(f"{sheet.path}: {what}; set label_encoding to n-hot or index")
    if called is None and len(rest) != 1:
        place, held = str(sheet.path), ""
        if odd:
            place, at, cell = odd
            held = f", and {sheet.columns[at]!r} holds {format_value(cell)}, not 0 or 1 as a column for each class"
        what = f"no column is called labels among {', '.join(first_lines(sheet.columns))}{held}"
        raise UsageError(f"{place}: {what}; call the column of labels so")
    at = rest[0] if called is None else called
    return _Raw([at], (cells[at] for _, cells in sheet.rows), encoding, vocabulary)


def _column_a_class(sheet: _Sheet, columns: Sequence[int], vocabulary: Vocabulary | None) -> _Raw:
    """Return the names of the columns that hold 1 in each row; they are names of classes, or their numbers."""
    names = [nfc(sheet.columns[at]) for at in columns]
    numbered = {class_number(name) for name in names} == {*range(len(names))}
    known = vocabulary or named(map(str, range(len(names))) if numbered else names)
    labels = ([name for name, at in zip(names, columns, strict=True) if _present(cells[at])] for _, cells in sheet.rows)
    return _Raw(columns, labels, "name", known)


def _present(cell: Any) -> int | None:
    """Return 1 for a class that is present, 0 for one that is not, and None for anything else."""
    return _BINARY.get(str(cell).casefold())


@dataclass(frozen=True)
class _Sheet:
    """Rows of a file, each with its place and cells: texts, or beyond CSV also values."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Any]]]

    def find(self, names: Sequence[str]) -> int | None:
        """Return the index of the first of some columns that the file has; None if it has none."""
        folded = [column.casefold() for column in self.columns]
        return next((folded.index(name) for name in names if name in folded), None)

    def require(self, what: str, names: Sequence[str]) -> int:
        """Return the index of a column that has to be there."""
        at = self.find(names)
        if at is None:
            raise UsageError(f"{self.path}: no column of {what} among {', '.join(self.columns)}; call it {names[0]}")
        return at


def _sheet(path: Path) -> _Sheet:
    """Read a file's rows; its first bytes say what it is."""
    try:
        with require_regular(path).open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    if start == b"PAR1":
        return _parquet(path)
    first = next((line for line in read_lines(path) if line.text.strip()), Line(1, ""))
    if first.text.lstrip()[:1] in ("{", "["):
        return _json(path, list(read_lines(path)))
    table = read_table(path)
    return _Sheet(path, table.columns, [(f"{path}, line {line}", cells) for line, cells in table])


def _json(path: Path, lines: Sequence[Line]) -> _Sheet:
    """Read JSON Lines, a list of objects, or one object of labels by id."""
    filled = [line for line in lines if line.text.strip()]
    try:
        first = json.loads(filled[0].text)
    except ValueError:
        first = None
    if isinstance(first, dict) and (len(filled) > 1 or any(key.casefold() in ID_COLUMNS for key in first)):
        return _objects(path, [(f"{path}, line {line.number}", _parsed(path, line)) for line in filled])
    whole = _parsed(path, Line(1, "\n".join(line.text for line in lines)))
    if isinstance(whole, dict):
        return _Sheet(path, ("id", "labels"), [(f"{path}, {item[0]!r}", item) for item in whole.items()])
    return _objects(path, [(f"{path}, entry {number}", entry) for number, entry in enumerate(whole)])


def _objects(path: Path, rows: Sequence[tuple[str, Any]]) -> _Sheet:
    for place, row in rows:
        if not isinstance(row, dict):
            raise UsageError(f'{place}: is {format_value(row)}; give an object such as {{"id": "a", "labels": [1]}}')
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    needed = [column for column in columns if column.casefold() in (*ID_COLUMNS, *LABEL_COLUMNS)]
    for place, row in rows:
        if missing := next((column for column in needed if column not in row), None):
            raise UsageError(f"{place}: has no {missing!r}, as other objects have; a video without labels has []")
    return _Sheet(path, columns, [(place, [row.get(column) for column in columns]) for place, row in rows])


def _parsed(path: Path, line: Line) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{path}, line {line.number}: the key {twice!r} occurs twice in an object; keep one")
        return content

    try:
        return json.loads(line.text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise fault(path, line.number + error.lineno - 1, f"is not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise fault(path, line.number, f"is not JSON that can be read ({error})") from error


def _parquet(path: Path) -> _Sheet:
    """Read the columns of a Parquet file that may be ids or labels; features are passed over."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"{path}: Parquet needs pyarrow ({error}): {install_command('import')}") from error

    known = (*ID_COLUMNS, *LABEL_COLUMNS, *START_COLUMNS, *END_COLUMNS, *RATING_COLUMNS)

    def wanted(column: Any) -> bool:
        kind = column.type
        large = pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return column.name.casefold() in known or not large

    def column(name: str) -> list[Any]:
        cells: list[Any] = table.column(name).to_pylist()
        if name not in names:
            return cells
        return [named_classes(cell, names[name], f"{path}, row {number}") for number, cell in enumerate(cells)]

    try:
        file = pq.ParquetFile(path)
        columns = [each.name for each in file.schema_arrow if wanted(each)]
        table, names = file.read(columns), class_names(file.schema_arrow, path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: is not a Parquet file that can be read ({one_line(error)})") from error
    cells = zip(*map(column, columns), strict=True)
    return _Sheet(path, columns, [(f"{path}, row {number}", row) for number, row in enumerate(cells)])


def _id(place: str, given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int) or not nfc(str(given)):
        raise UsageError(f"{place}: the id is {given!r}; give a text or a whole number")
    return nfc(str(given))
