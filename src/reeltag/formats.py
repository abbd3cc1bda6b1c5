"""Predictions on disk: Kaggle's CSV and JSON Lines, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from reeltag.errors import UsageError
from reeltag.metrics import TOP_K, top_k
from reeltag.predict import Predictions
from reeltag.storage import atomic_path, refuse_existing, write_bytes


def kaggle_lines(predictions: Iterable[Predictions], label_names: Sequence[str]) -> Iterator[str]:
    """The challenge's format: `VideoId,LabelConfidencePairs`, 20 pairs of class number and probability."""
    yield "VideoId,LabelConfidencePairs"
    for part in predictions:
        scores, classes = top_k(part.probabilities, TOP_K)
        for name, row, numbers in zip(part.ids, scores.tolist(), classes.tolist(), strict=True):
            pairs = " ".join(f"{number} {score:.6f}" for number, score in zip(numbers, row, strict=True))
            yield f"{_csv_cell(name)},{pairs}"


def json_lines(predictions: Iterable[Predictions], label_names: Sequence[str]) -> Iterator[str]:
    """One JSON object a video: its id and its 20 most probable classes, by number and name."""
    for part in predictions:
        scores, classes = top_k(part.probabilities, TOP_K)
        for name, row, numbers in zip(part.ids, scores.tolist(), classes.tolist(), strict=True):
            tags = [
                {"class": number, "name": label_names[number], "score": round(score, 6)}
                for number, score in zip(numbers, row, strict=True)
            ]
            yield json.dumps({"id": name, "tags": tags}, ensure_ascii=False)


FORMATS: dict[str, Callable[[Iterable[Predictions], Sequence[str]], Iterator[str]]] = {
    ".csv": kaggle_lines,
    ".jsonl": json_lines,
}


def check_output(path: Path) -> None:
    """See that predictions can be written to a path, before they are computed.

    Raises:
        UsageError: unknown format, or the file exists.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: the format is told by the ending; use .csv (Kaggle) or .jsonl (JSON Lines)")
    refuse_existing(path)


def write_predictions(path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> int:
    """Write predictions in the format of the path's ending.

    Returns:
        The number of videos.

    Raises:
        UsageError: unknown format, or the file exists.
    """
    check_output(path)
    count = 0

    def counting() -> Iterator[Predictions]:
        nonlocal count
        for part in predictions:
            count += len(part.ids)
            yield part

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in FORMATS[path.suffix](counting(), label_names):
            file.write(line + "\n")
    return count


def write_class_ap(path: Path, class_ap: Sequence[float], label_names: Sequence[str]) -> None:
    """Write `class,name,ap`, a line a class."""
    rows = [f"{number},{_csv_cell(label_names[number])},{ap:.5f}" for number, ap in enumerate(class_ap)]
    write_bytes(path, "\n".join(["class,name,ap", *rows, ""]).encode())


def _csv_cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text
