"""Read tables that people have: CSV, separated by commas, semicolons or tabs, and lists of lines.

A row is one line. A cell with a line break is refused, since an open quote looks the same and would swallow rows.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

from reeltag.core.errors import UsageError
from reeltag.core.storage import require_regular
from reeltag.core.text import counted, same_form

MAX_LINE = 1 << 26  # characters; one row of a table
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LIMIT = Lock()  # of the csv module's field size limit, which all threads share


class Line(NamedTuple):
    """A line of a text file, or a row of a table.

    Attributes:
        number: from 1.
        text: without the line break.
    """

    number: int
    text: str


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: number of its line, from 1.
        cells: one for each column, without spaces around it.
    """

    line: int
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """A table with a header; iterating over it reads its rows from the file, one at a time.

    Attributes:
        path: of the file, for messages.
        columns: names of the columns, each once.
        separator: of the cells.
        header: number of the header's line.
    """

    path: Path | str
    columns: tuple[str, ...]
    separator: str
    header: int
    content: bytes | None = field(repr=False)

    def __iter__(self) -> Iterator[Row]:
        """Iterate over the rows; blank lines are none.

        Raises:
            UsageError: a row has more or fewer cells than the header, a line break in a cell, or is no text.
        """
        for line in read_lines(self.path, self.content):
            if line.number > self.header and line.text.strip(" "):
                yield Row(line.number, self._cells(line))

    def _cells(self, line: Line) -> list[str]:
        cells = parse_row(self.path, line, self.separator)
        if len(cells) != len(self.columns):
            what = f"has {counted(len(cells), 'cell')}, and the header {counted(len(self.columns), 'column')}"
            how = f"put a cell that has a {SEPARATORS[self.separator]} in it into quotes"
            raise fault(self.path, line.number, f"{what}; {how}, and give every column a cell, if need be an empty one")
        return cells

    def find(self, *names: str) -> int | None:
        """Return the index of the first of some columns that the table has, in any letter case; None if it has none."""
        folded = [column.casefold() for column in self.columns]
        return next((folded.index(name) for name in names if name in folded), None)


def read_table(path: Path | str, content: bytes | None = None) -> Table:
    """Read the header of a CSV file, which says how cells are separated; its rows are read by iterating.

    Lines that begin with `#` before the header are comments; the last of them is the header if it has as many cells as
    the line after it, as in AudioSet's segment lists. Text is UTF-8, or UTF-16 with a byte order mark.

    Args:
        path: of the file.
        content: bytes of the file, if it is not on this machine; `path` is then only its name.

    Raises:
        UsageError: the file cannot be read, is empty or no text, or its header is unclear, lacks a name or repeats one.
    """
    comment = None
    for line in read_lines(path, content):
        if not line.text.strip():
            continue
        if line.text.startswith("#"):
            comment = Line(line.number, line.text[1:])
            continue
        if comment and (named := _header(path, comment))[0] == len(parse_row(path, line, named[1])) > 1:
            line = comment
        columns = parse_row(path, line, separator := _header(path, line)[1])
        if "" in columns:
            where = f"column {columns.index('') + 1} of the header has no name"
            raise fault(path, line.number, f"{where}; name it or remove it (pandas: to_csv(…, index=False))")
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise fault(path, line.number, f"two columns are called {twice!r}; rename one")
        return Table(path, tuple(columns), separator, line.number, content)
    raise UsageError(f"{path}: is empty; it needs a header with the names of the columns, and rows")


def _header(path: Path | str, line: Line) -> tuple[int, str]:
    """Return the number of cells of a header, and the separator that gives the most."""
    sizes = {separator: _cells_by(separator, path, line) for separator in SEPARATORS}
    most = max(sizes.values())
    best = [separator for separator, size in sizes.items() if size == most]
    if most > 1 and len(best) > 1:
        names = " or a ".join(SEPARATORS[separator] for separator in best)
        raise fault(path, line.number, f"the header may be separated by a {names}; rename columns, or quote them")
    return most, best[0]


def _cells_by(separator: str, path: Path | str, line: Line) -> int:
    """Return the number of cells by a separator; 0 if quotes do not enclose whole cells."""
    try:
        cells = parse_row(path, line, separator)
    except UsageError:
        return 0
    return 0 if len(cells) > 1 and any('"' in cell for cell in cells) else len(cells)


def parse_row(path: Path | str, line: Line, separator: str) -> list[str]:
    """Split a line into its cells, without spaces around them.

    Args:
        path: of the file, for messages.
        line: the line.
        separator: of the cells.

    Raises:
        UsageError: a quote is open at the end of the line, or text follows a closed one.
    """
    try:
        with _room_for(line.text):
            reader = csv.reader([line.text.rstrip(" ")], delimiter=separator, strict=True, skipinitialspace=True)
            cells = next(reader) or [""]
    except csv.Error as error:
        what = "a quote is open at the end of the line" if "end of data" in str(error) else f"is not CSV ({error})"
        how = 'close it, write "" for a quote inside a cell, and no line breaks'
        raise fault(path, line.number, f"{what}; {how}") from error
    return [cell.strip() for cell in cells]


@contextmanager
def _room_for(text: str) -> Iterator[None]:
    """Raise the csv module's limit for a long line, and lower it again."""
    if len(text) <= csv.field_size_limit():
        yield
        return
    with _LIMIT:
        before = csv.field_size_limit(len(text))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def read_lines(path: Path | str, content: bytes | None = None) -> Iterator[Line]:
    """Iterate over the lines of a text file; names in it are brought into one Unicode form (NFC).

    Args:
        path: of the file.
        content: bytes of the file, if it is not on this machine; `path` is then only its name.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 (or UTF-16 with a byte order mark), has a NUL character, or a
            line of more than `MAX_LINE` characters.
    """
    number = 0
    try:
        with _opened(path, content) as raw:
            wide = raw.read(2) in _MARKS
            raw.seek(0)
            # What is not UTF-8 is let pass here, and refused with its line below.
            with TextIOWrapper(raw, *(("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape"))) as text:
                while line := text.readline(MAX_LINE + 1):
                    number += 1
                    yield Line(number, _checked(path, number, line.removesuffix("\n")))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise fault(
            path, number + 1, f"is not UTF-16, as its first bytes say ({error.reason}); save it as UTF-8"
        ) from error


def _opened(path: Path | str, content: bytes | None) -> BinaryIO:
    return require_regular(Path(path)).open("rb") if content is None else BytesIO(content)


def _checked(path: Path | str, number: int, line: str) -> str:
    if len(line) > MAX_LINE:
        raise fault(path, number, f"has more than {MAX_LINE:,} characters; is this a text file with line breaks?")
    if "\0" in line:
        raise fault(path, number, "has a NUL character; save the file as UTF-8 text")
    if line.isascii():
        return line
    try:
        line.encode()
    except UnicodeEncodeError as error:  # bytes that the decoder let pass
        raise fault(path, number, "is not UTF-8; save the file as UTF-8") from error
    return same_form(line)


def fault(path: Path | str, line: int, reason: str) -> UsageError:
    """Return an error that names a line of a file."""
    return UsageError(f"{path}, line {line}: {reason}")


def require_columns(table: Table, names: Sequence[str]) -> list[int]:
    """Return the indices of columns that a table has to have.

    Raises:
        UsageError: one is missing.
    """
    found = [table.find(name.casefold()) for name in names]
    if None in found:
        wanted = " and ".join(map(repr, names))
        raise UsageError(f"{table.path}: needs a header with the columns {wanted}, and has {', '.join(table.columns)}")
    return [index for index in found if index is not None]
