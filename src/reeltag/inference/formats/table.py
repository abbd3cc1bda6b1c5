"""File formats of predictions: Kaggle's CSV, JSON Lines and Parquet. Files are written atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from reeltag.core.errors import UsageError
from reeltag.core.storage import atomic_path
from reeltag.data.schema import Schema
from reeltag.inference.ensemble import Predictions
from reeltag.inference.formats.parquet import Parquet
from reeltag.inference.formats.submission import Submission
from reeltag.inference.selection import ALL, Selection


def kaggle_lines(
    predictions: Iterable[Predictions], label_names: Sequence[str], selection: Selection = ALL
) -> Iterator[str]:
    """Yield lines of Kaggle's format: the id, and pairs of class number and probability of its tags."""
    for name, numbers, scores in _tagged(predictions, selection):
        pairs = " ".join(f"{number} {score:.6f}" for number, score in zip(numbers, scores, strict=True))
        yield f"{_csv_cell(name)},{pairs}"


def named_lines(
    predictions: Iterable[Predictions], label_names: Sequence[str], selection: Selection = ALL
) -> Iterator[str]:
    """Yield a line of CSV for each tag: the id, number and name of the class, and its probability."""
    for name, numbers, scores in _tagged(predictions, selection):
        for number, score in zip(numbers, scores, strict=True):
            yield f"{_csv_cell(name)},{number},{_csv_cell(label_names[number])},{score:.6f}"


def json_lines(
    predictions: Iterable[Predictions], label_names: Sequence[str], selection: Selection = ALL
) -> Iterator[str]:
    """Yield one JSON object for each video: its id and its tags, by number and name."""
    for name, numbers, scores in _tagged(predictions, selection):
        tags = [
            {"class": number, "name": label_names[number], "score": round(score, 6)}
            for number, score in zip(numbers, scores, strict=True)
        ]
        yield json.dumps({"id": name, "tags": tags}, ensure_ascii=False)


def _tagged(predictions: Iterable[Predictions], selection: Selection) -> Iterator[tuple[str, list[int], list[float]]]:
    """Yield the id of each video, and the classes and probabilities of its tags."""
    for part in predictions:
        for name, (numbers, scores) in zip(part.ids, selection.tags(part.probabilities), strict=True):
            yield name, numbers, scores


class Format(Protocol):
    """File format of predictions: parts are written separately and joined to one file."""

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write a part."""

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Join parts to one file, in their order."""


@dataclass(frozen=True)
class Text:
    """Text format with one line for each video, after an optional header."""

    lines: Callable[[Iterable[Predictions], Sequence[str], Selection], Iterator[str]]
    header: str = ""
    selection: Selection = ALL

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write the lines of a part."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for line in self.lines(predictions, label_names, self.selection):
                file.write(line + "\n")

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Write the header and all parts."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(self.header.encode())
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, file)


FORMATS: dict[str, Callable[[Selection], Format]] = {
    ".csv": partial(Text, kaggle_lines, "VideoId,LabelConfidencePairs\n"),
    ".jsonl": partial(Text, json_lines, ""),
    ".parquet": Parquet,
}


def refuse_ending(path: Path, *, names: bool = False) -> None:
    """Refuse a path whose ending names no format, so that the error comes before a model is loaded.

    Args:
        path: of the file.
        names: True if names are to stand beside numbers in CSV.

    Raises:
        UsageError: the ending is unknown, is another than .csv although names are asked for, or its format needs a
            package that is not installed.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: the ending decides the format; use .csv (Kaggle), .jsonl (JSON Lines) or .parquet")
    if names and path.suffix != ".csv":
        raise UsageError(f"{path}: has names in any case; names are for .csv alone, so leave them out")
    FORMATS[path.suffix](ALL)


def output_format(path: Path, schema: Schema, selection: Selection = ALL, *, names: bool = False) -> Format:
    """Return the format for a path's ending, which is a key of `FORMATS`; CSV of segments is a submission file.

    Args:
        path: of the file.
        schema: of the model.
        selection: tags of a video; by default the 20 most probable classes.
        names: CSV with a line for each tag, with the name of its class, instead of Kaggle's.

    Raises:
        UsageError: the format needs a package that is not installed, or a submission file would need a selection.
    """
    if names:
        return Text(named_lines, "id,class,name,score\n", selection)
    if path.suffix == ".csv" and schema.segments is not None:
        if selection != ALL:
            raise UsageError(
                f"{path}: lists the best segments of each class, whatever their scores; for tags of segments take "
                "names, .jsonl or .parquet"
            )
        return Submission(schema)
    return FORMATS[path.suffix](selection)


def _csv_cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text
