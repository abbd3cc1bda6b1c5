"""Find the videos of a data set, their ids and labels, and split them into training and test."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path, PurePath

from reeltag.core.errors import UsageError
from reeltag.core.tables import Row, fault, read_table, require_columns
from reeltag.core.text import counted, first_lines, same_form
from reeltag.data.vocabulary import MAX_CLASSES

# Suffixes by which media files are found in a folder; files given by name, or named by the labels, may have any suffix.
ENDINGS = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".mxf", ".nut", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"}
    | {".264", ".265", ".apng", ".gif", ".h264", ".h265", ".hevc", ".m2v", ".mjpeg", ".mjpg", ".y4m"}
    | {".aac", ".ac3", ".aif", ".aiff", ".caf", ".flac", ".m4a", ".mka", ".mp2", ".mp3", ".oga", ".ogg", ".opus"}
    | {".tta", ".w64", ".wav", ".weba", ".wma", ".wv"}
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
        remarks: on what was not taken, with counts.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...] | None
    left_out: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def find_videos(inputs: Sequence[str], labels: Path | None, *, fewest: int = 1) -> Dataset:
    """Find videos and their labels.

    Args:
        inputs: folders, files, or glob patterns.
        labels: CSV file with the columns `file` and `labels`; None for videos without labels.
        fewest: number of videos with labels that are needed.

    Raises:
        UsageError: an input matches nothing, two videos have the same id, the labels cannot be read, or they name too
            few of the videos.
    """
    given = None if labels is None else _read_labels(labels)
    found = _find(inputs, given or {}, labels)
    paths = sorted(found.paths.items())
    if given is None or labels is None:
        return Dataset(tuple(Item(name, path, None) for name, path in paths), None, found.odd, found.remarks)
    classes = _classes({label for row in given.values() for label in row}, labels)
    index = {label: number for number, label in enumerate(classes)}
    items = tuple(
        Item(name, path, tuple(sorted({index[label] for label in given[name]})))
        for name, path in paths
        if name in given
    )
    spare = [name for name in given if name not in found.paths and name not in found.odd]
    unlabelled = [name for name, _ in paths if name not in given]
    left_out = {**found.odd, **_without_row(unlabelled, spare, labels)}
    remarks = found.remarks
    if found.folders:
        left_out |= _without_video(spare, unlabelled, labels)
    elif spare:
        what = f"{counted(len(spare), 'row')} of {labels.name} not read, since no such video was given"
        remarks = (*remarks, f"{what}: {', '.join(first_lines(spare))}")
    if len(items) < fewest and (left_out or not items):
        lines = [f"{name}: {reason}" for name, reason in sorted(left_out.items())]
        count = f"only {len(items)} of the videos, and a split needs {fewest}" if items else "none of the videos"
        raise UsageError("\n  ".join([f"{labels}: names {count}", *first_lines(lines)]))
    return Dataset(items, classes, left_out, remarks)


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


def _without_row(videos: Sequence[str], rows: Sequence[str], labels: Path) -> dict[str, str]:
    """Say of each video that it has no row, and which spare row may be meant for it."""
    near = {_bare(row): row for row in rows}
    reason = f"has no row in {labels.name}"
    return {
        name: f"{reason}; its row {near[_bare(name)]!r} must be called {name!r}" if _bare(name) in near else reason
        for name in videos
    }


def _without_video(rows: Sequence[str], videos: Sequence[str], labels: Path) -> dict[str, str]:
    """Say of each row that there is no such video, and which video without a row may be meant."""
    near = {_bare(name): name for name in videos}
    reason = f"is listed in {labels.name}, but there is no such video"
    return {row: f"{reason}; it is called {near[_bare(row)]!r}" if _bare(row) in near else reason for row in rows}


def _bare(name: str) -> str:
    """Return a file's name without folders and ending, in lower case."""
    return PurePath(name.replace("\\", "/")).stem.casefold()


@dataclass(frozen=True)
class _Found:
    """Files that were found.

    Attributes:
        paths: of the videos, by id.
        odd: ids of what has the name of a video and is no file that can be read, with the reason.
        endings: number of files that were not taken, by ending.
        folders: if a folder was given.
    """

    paths: Mapping[str, Path]
    odd: Mapping[str, str]
    endings: Mapping[str, int]
    folders: bool

    @property
    def remarks(self) -> tuple[str, ...]:
        """A remark on the files that were not taken."""
        if not self.endings:
            return ()
        most = sorted(self.endings, key=lambda ending: (-self.endings[ending], ending))
        return (
            f"{counted(sum(self.endings.values()), 'file')} of other endings not taken: {', '.join(first_lines(most))}",
        )


def _find(inputs: Sequence[str], rows: Container[str], labels: Path | None) -> _Found:
    """Find the files that inputs name."""
    paths: dict[str, Path] = {}
    odd: dict[str, str] = {}
    endings: Counter[str] = Counter()
    matches = [match for given in inputs for match in _matches(given)]
    for match in matches:
        found = _in_folder(match, rows, labels) if match.is_dir() else _Found({_text(match.name): match}, {}, {}, False)
        for name, path in found.paths.items():
            if paths.setdefault(name, path) != path:
                what = f"{paths[name]} and {path} are both called {name!r}"
                raise UsageError(f"{what}; give the folder above them, so that names tell them apart")
        odd |= found.odd
        endings.update(found.endings)
    if not paths:
        raise UsageError("no videos given; give folders, files or glob patterns in quotes")
    return _Found(paths, odd, endings, any(match.is_dir() for match in matches))


def _in_folder(folder: Path, rows: Container[str], labels: Path | None) -> _Found:
    """Find the files in a folder that have a usual ending or a row."""
    paths: dict[str, Path] = {}
    odd: dict[str, str] = {}
    endings: Counter[str] = Counter()
    for file in sorted(file for file in folder.rglob("*") if not file.is_dir()):
        inside = file.relative_to(folder)
        name = _text(inside.as_posix())
        if file.suffix.lower() not in ENDINGS and name not in rows:
            if not any(part.startswith(".") for part in inside.parts) and file.resolve() != (
                labels and labels.resolve()
            ):
                endings[file.suffix.lower() or "none"] += 1
        elif file.is_file():
            paths[name] = file
        else:
            odd[name] = "is a link to a file that does not exist" if file.is_symlink() else "is no regular file"
    if not paths:
        lines = [f"{name}: {reason}" for name, reason in odd.items()]
        what = f"{folder}: holds no videos; those of other endings than usual can be given by name"
        raise UsageError("\n  ".join([what, *first_lines(lines)]))
    return _Found(paths, odd, endings, True)


def _matches(given: str) -> list[Path]:
    path = Path(given)
    anchor = Path(path.anchor)
    matches = [path] if path.exists() else sorted(anchor.glob(str(path.relative_to(anchor))))
    if not matches:
        raise UsageError(f"{given}: there is no such video or folder; give folders, files or glob patterns in quotes")
    return matches


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
