"""Find the videos of a data set, their ids and labels, and split them into training and test."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.tables import Row, fault, read_table, require_columns
from reeltag.core.text import counted, first_lines, same_form
from reeltag.data.vocabulary import MAX_CLASSES

# Suffixes by which media files are found in a folder; files given by name may have any suffix.
ENDINGS = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
    | {".ogv", ".ts", ".vob", ".webm", ".wmv"}
    | {".aac", ".flac", ".m4a", ".mka", ".mp3", ".ogg", ".opus", ".wav", ".wma"}
)


@dataclass(frozen=True)
class Item:
    """A video of the data set.

    Attributes:
        id: name in the data set: its file name, or its path relative to the folder that was given.
        path: the file.
        labels: class indices, sorted; None if the data set has no labels.
    """

    id: str
    path: Path
    labels: tuple[int, ...] | None

    @property
    def order(self) -> bytes:
        """Sort key of the records: a hash of the id, which mixes classes and keeps splits stable."""
        return hashlib.sha256(self.id.encode()).digest()


@dataclass(frozen=True)
class Dataset:
    """Videos and their labels.

    Attributes:
        items: the videos, sorted by id.
        classes: names of the classes, by index; None if the data set has no labels.
        left_out: ids of videos that are left out, with the reason.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...] | None
    left_out: Mapping[str, str]


def find_videos(inputs: Sequence[str], labels: Path | None) -> Dataset:
    """Find videos and their labels.

    Args:
        inputs: folders, files, or glob patterns.
        labels: CSV file with the columns `file` and `labels`; None for videos without labels.

    Raises:
        UsageError: an input matches nothing, two videos have the same id, or the labels cannot be read.
    """
    paths = _paths(inputs)
    if labels is None:
        return Dataset(tuple(Item(name, path, None) for name, path in sorted(paths.items())), None, {})
    given = _read_labels(labels)
    classes = _classes({label for row in given.values() for label in row}, labels)
    index = {label: number for number, label in enumerate(classes)}
    items = (
        Item(name, path, tuple(sorted({index[label] for label in given[name]})))
        for name, path in sorted(paths.items())
        if name in given
    )
    left_out = {name: f"has no row in {labels.name}" for name in paths if name not in given}
    left_out |= {name: f"is listed in {labels.name}, but there is no such video" for name in given if name not in paths}
    found = Dataset(tuple(items), classes, left_out)
    if not found.items:
        lines = [f"{name}: {reason}" for name, reason in sorted(left_out.items())]
        raise UsageError("\n  ".join([f"{labels}: names none of the videos", *first_lines(lines)]))
    return found


def split(items: Sequence[Item], test_share: float) -> tuple[list[Item], list[Item]]:
    """Split videos into training and test, each ordered by hash.

    The hash of a video's id decides its split, so adding videos moves no other video. Only a split that would be empty
    gets the video with the nearest hash.

    Args:
        items: the videos.
        test_share: fraction of the videos for the test, in [0, 1).

    Returns:
        Training videos and test videos.

    Raises:
        UsageError: there are too few videos to split.
    """
    ordered = sorted(items, key=lambda item: item.order)
    if not test_share:
        return ordered, []
    if len(ordered) < 2:
        raise UsageError(f"--test-share: {counted(len(ordered), 'video')} cannot be split; give more, or 0")
    tests = sum(int.from_bytes(item.order[:8], "big") < test_share * 2**64 for item in ordered)
    tests = min(max(tests, 1), len(ordered) - 1)
    return ordered[tests:], ordered[:tests]


def classes_without_training_videos(data: Dataset, trained: Container[str]) -> list[str]:
    """Return the names of classes without a training video.

    Args:
        data: the videos.
        trained: ids of the training videos.
    """
    taught = {label for item in data.items if item.id in trained for label in item.labels or ()}
    return [name for label, name in enumerate(data.classes or ()) if label not in taught]


def label_names_csv(classes: Iterable[str]) -> str:
    """Format class names as the CSV file that a recipe's `data.label_names` reads."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "name"])
    writer.writerows(enumerate(classes))
    return text.getvalue()


def _paths(inputs: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in (pair for given in inputs for pair in _named(given)):
        if found.setdefault(name, path) != path:
            what = f"{found[name]} and {path} are both called {name!r}"
            raise UsageError(f"{what}; give the folder above them, so that names tell them apart")
    if not found:
        raise UsageError("no videos given; give folders, files or glob patterns in quotes")
    return found


def _named(given: str) -> Iterator[tuple[str, Path]]:
    path = Path(given)
    anchor = Path(path.anchor)
    matches = [path] if path.exists() else sorted(anchor.glob(str(path.relative_to(anchor))))
    if not matches:
        raise UsageError(f"{given}: there is no such video or folder; give folders, files or glob patterns in quotes")
    for match in matches:
        if match.is_dir():
            files = sorted(file for file in match.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
            if not files:
                raise UsageError(f"{match}: holds no videos; those of other endings than usual can be given by name")
            yield from ((_text(file.relative_to(match).as_posix()), file) for file in files)
        else:
            yield _text(match.name), match


def _text(name: str) -> str:
    """Replace what cannot be encoded as UTF-8 by question marks, and bring names into one Unicode form."""
    return same_form(name.encode(errors="replace").decode())


def _read_labels(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the labels of each video, by its id."""
    table = read_table(path)
    file_at, labels_at = require_columns(table, ("file", "labels"))
    found: dict[str, tuple[str, ...]] = {}
    raw: list[Row] = []
    for line, cells in table:
        name = cells[file_at]
        if not name:
            raise fault(path, line, "needs a file and its labels, separated by | or ;")
        if name in found:
            raise fault(path, line, f"{name} has a row already; put all its labels into one")
        raw.append(Row(line, [label.strip() for label in re.split("[|;]", cells[labels_at])]))
        found[name] = tuple(filter(None, raw[-1].cells))
    _refuse_unclear(path, raw)
    sizes, used = {len(labels) for labels in found.values() if labels}, {*chain.from_iterable(found.values())}
    if len(sizes) == 1 and max(sizes) > 1 and used <= {"0", "1"}:
        what = f"every video has {max(sizes)} labels, all of them 0 or 1, as in N-hot labels"
        raise UsageError(f"{path}: {what}; give the names or numbers of the classes that are present")
    return found


def _refuse_unclear(path: Path, rows: Sequence[Row]) -> None:
    """Refuse names with commas where nothing else separates labels, and numbers among names."""
    labels = [(line, label) for line, cells in rows for label in cells if label]
    comma = next(((line, label) for line, label in labels if "," in label), None)
    if comma and all(len(cells) == 1 for _, cells in rows):
        how = "separate labels by |, or end a name that has a comma with |"
        raise fault(path, comma[0], f"{comma[1]!r} may be one label or several; {how}")
    number = next(((line, label) for line, label in labels if label.isascii() and label.isdigit()), None)
    name = next(((line, label) for line, label in labels if not (label.isascii() and label.isdigit())), None)
    if number and name:
        what = f"{number[1]!r} is a number, and {name[1]!r} in line {name[0]} a name"
        raise fault(path, number[0], f"{what}; give every class a name, or every class its number")


def _classes(labels: set[str], path: Path) -> tuple[str, ...]:
    """Return the names of the classes: the sorted labels, or, if all are numbers, every number up to the highest."""
    if not labels:
        raise UsageError(f"{path}: gives no video a label")
    if all(label.isascii() and label.isdigit() for label in labels):
        highest = max(int(label) for label in labels)
        if highest >= MAX_CLASSES:
            raise UsageError(f"{path}: label {highest} is too high; classes are numbered from 0 to {MAX_CLASSES - 1:,}")
        if odd := sorted(label for label in labels if label != str(int(label))):
            raise UsageError(f"{path}: label {odd[0]} is written with zeros before it; write {int(odd[0])}")
        return tuple(str(number) for number in range(highest + 1))
    return tuple(sorted(labels))
