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
from reeltag.inference.metrics.video_metrics import TOP_K, top_k


def kaggle_lines(predictions: Iterable[Predictions], label_names: Sequence[str]) -> Iterator[str]:
    """Yield lines of Kaggle's format: the id, and 20 pairs of class number and probability."""
    for part in predictions:
        scores, classes = top_k(part.probabilities, TOP_K)
        for name, row, numbers in zip(part.ids, scores.tolist(), classes.tolist(), strict=True):
            pairs = " ".join(f"{number} {score:.6f}" for number, score in zip(numbers, row, strict=True))
            yield f"{_csv_cell(name)},{pairs}"


def json_lines(predictions: Iterable[Predictions], label_names: Sequence[str]) -> Iterator[str]:
    """Yield one JSON object for each video: its id and its 20 most probable classes, by number and name."""
    for part in predictions:
        scores, classes = top_k(part.probabilities, TOP_K)
        for name, row, numbers in zip(part.ids, scores.tolist(), classes.tolist(), strict=True):
            tags = [
                {"class": number, "name": label_names[number], "score": round(score, 6)}
                for number, score in zip(numbers, row, strict=True)
            ]
            yield json.dumps({"id": name, "tags": tags}, ensure_ascii=False)


class Format(Protocol):
    """File format of predictions: parts are written separately and joined to one file."""

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write a part."""

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Join parts to one file, in their order."""


@dataclass(frozen=True)
class Text:
    """Text format with one line for each video, after an optional header."""

    lines: Callable[[Iterable[Predictions], Sequence[str]], Iterator[str]]
    header: str = ""

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write the lines of a part."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for line in self.lines(predictions, label_names):
                file.write(line + "\n")

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Write the header and all parts."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(self.header.encode())
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, file)


FORMATS: dict[str, Callable[[], Format]] = {
    ".csv": partial(Text, kaggle_lines, "VideoId,LabelConfidencePairs\n"),
    ".jsonl": partial(Text, json_lines),
    ".parquet": Parquet,
}


def refuse_ending(path: Path) -> None:
    """Refuse a path whose ending names no format, so that the error comes before a model is loaded.

    Raises:
        UsageError: the ending is unknown, or its format needs a package that is not installed.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: the ending decides the format; use .csv (Kaggle), .jsonl (JSON Lines) or .parquet")
    FORMATS[path.suffix]()


def output_format(path: Path, schema: Schema) -> Format:
    """Return the format for a path's ending, which is a key of `FORMATS`; CSV of segments is a submission file.

    Raises:
        UsageError: the format needs a package that is not installed.
    """
    if path.suffix == ".csv" and schema.segments is not None:
        return Submission(schema)
    return FORMATS[path.suffix]()


def _csv_cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text
