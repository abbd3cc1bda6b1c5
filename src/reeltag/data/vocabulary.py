"""Names of the classes: vocabularies of YouTube-8M, AudioSet and Kaggle, and plain lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.remote_files import is_url, read
from reeltag.core.tables import Table, fault, parse_row, read_lines, read_table
from reeltag.core.text import did_you_mean, same_form

MAX_CLASSES = 1_000_000

# Columns by the names that data sets give them, in lower case.
NUMBERS = ("index", "label_id", "class_id", "class_index")  # AudioSet and YouTube-8M, Kaggle
NAMES = ("display_name", "name", "label_name", "class_name")
IDS = ("mid", "knowledgegraphid")


@dataclass(frozen=True)
class Vocabulary:
    """Classes of a data set, C in all.

    Attributes:
        names: [C] what each class is called: by its name, else by its id, else by its number; never empty.
        ids: [C] such as /m/01mw1; empty where there is none.
        remarks: on classes that have no name of their own.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] = field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """C."""
        return len(self.names)

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, words in enumerate(zip(self.names, self.ids, strict=True)):
            for word in {*words} - {""}:
                found.setdefault(word, []).append(number)
        return found

    def __contains__(self, name: str) -> bool:
        """Tell if there is a class of this name or id."""
        return nfc(name) in self._numbers

    def number(self, name: str) -> int:
        """Return the number of the class with this name or id.

        Raises:
            UsageError: there is none, or several.
        """
        numbers = self._numbers.get(nfc(name), [])
        if len(numbers) > 1:
            listed = " and ".join(map(str, numbers))
            raise UsageError(f"the classes {listed} are all called {name!r}; give class numbers or ids")
        if not numbers:
            hint = did_you_mean(name, self._numbers) or "see the names of the classes"
            raise UsageError(f"there is no class {name!r}; {hint}")
        return numbers[0]


def nfc(text: str) -> str:
    """Return a text in the Unicode form that names and ids are compared in, without spaces around it."""
    return same_form(text).strip()


def named(names: Iterable[str]) -> Vocabulary:
    """Return a vocabulary of names alone."""
    listed = tuple(map(nfc, names))
    return Vocabulary(listed, ("",) * len(listed))


def read_vocabulary(path: Path | str, classes: int | None = None) -> Vocabulary:
    """Read the names of the classes: a CSV file, or a list with a name a line.

    The header of a CSV file names a column of numbers (`index`, or Kaggle's `label_id`), one of names (`display_name`,
    `name` or `label_name`), and maybe one of ids (`mid`, `KnowledgeGraphId`), in any letter case and order. Rows may be
    in any order, and classes may be left out: these are called by their number. The file may be behind a URL.

    Args:
        path: of the file, or its URL.
        classes: C; by default one more than the highest number.

    Raises:
        UsageError: the file cannot be read, lacks a column, numbers a class twice, or has other classes than C.
    """
    remote = is_url(str(path))
    if not remote and not Path(path).is_file():
        raise UsageError(f"{path}: no such file of label names; see data.label_names")
    content = read(str(path)) if remote else None
    table = read_table(path, content)
    listed = len(table.columns) == 1 and table.find(*NUMBERS) is None
    rows = _listed(path, content) if listed else _tabled(table)
    if not rows:
        raise UsageError(f"{path}: names no class; it needs a header and a row for each class")
    highest = max(rows)
    if classes is not None and highest >= classes:
        line = rows[highest][0]
        raise fault(path, line, f"numbers a class {highest}, but there are only {classes}, 0 to {classes - 1}")
    return _vocabulary({number: words for number, (_, *words) in rows.items()}, classes or highest + 1)


_Rows = dict[int, tuple[int, str, str]]  # line, name and id by class number


def _listed(path: Path | str, content: bytes | None) -> _Rows:
    """Read a name a line; the first line may be a header."""
    lines = list(read_lines(path, content))
    while lines and not lines[-1].text.strip():
        lines.pop()
    if lines and lines[0].text.strip().casefold() in NAMES:
        lines.pop(0)
    found: _Rows = {}
    for number, line in enumerate(lines):
        cells = parse_row(path, line, ",")
        if len(cells) > 1:
            how = "put a name that has a comma in it into quotes, or begin with a header such as index,name"
            raise fault(path, line.number, f"has {len(cells)} cells in a list of one name a line; {how}")
        if not cells[0]:
            raise fault(path, line.number, "is empty; a list has the name of a class in each line, in their order")
        found[number] = (line.number, cells[0], "")
    return found


def _tabled(table: Table) -> _Rows:
    number_at, name_at, id_at = table.find(*NUMBERS), table.find(*NAMES), table.find(*IDS)
    if number_at is None or (name_at is None and (id_at is None or len(table.columns) > 2)):
        wanted = "'index' and 'display_name' or 'name'"
        raise UsageError(f"{table.path}: needs a header with the columns {wanted}, and has {', '.join(table.columns)}")
    found: _Rows = {}
    for line, cells in table:
        number = class_number(cells[number_at])
        if number is None:
            raise fault(
                table.path, line, f"{cells[number_at]!r} is not the number of a class, 0 to {MAX_CLASSES - 1:,}"
            )
        if number in found:
            raise fault(table.path, line, f"numbers a second class {number}, after line {found[number][0]}; keep one")
        words = (nfc(cells[at]) if at is not None else "" for at in (name_at, id_at))
        found[number] = (line, *words)  # type: ignore[assignment]
    return found


def class_number(text: str) -> int | None:
    """Return the class number that a text is; None if it is none below `MAX_CLASSES`, or has zeros before it."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_CLASSES))):
        return None
    return int(text) if str(int(text)) == text and int(text) < MAX_CLASSES else None


def _vocabulary(words: dict[int, list[str]], classes: int) -> Vocabulary:
    names, ids = zip(*(words.get(number, ["", ""]) for number in range(classes)), strict=True)
    bare = [each for name, each in zip(names, ids, strict=True) if not name]
    by_id = sum(map(bool, bare))
    remarks = [
        f"{count:,} of {classes:,} classes have no name and are called by their {what}"
        for count, what in ((by_id, "id"), (len(bare) - by_id, "number"))
        if count
    ]
    called = tuple(name or each or str(number) for number, (name, each) in enumerate(zip(names, ids, strict=True)))
    return Vocabulary(called, ids, tuple(remarks))
