"""Files of labels beside predictions: a row for each video and class, a row for each class, and FiftyOne's CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reeltag.core.errors import UsageError
from reeltag.core.storage import atomic_path
from reeltag.inference.formats.parquet import import_pyarrow
from reeltag.inference.metrics.bootstrap import Resampled
from reeltag.inference.metrics.outcomes import Outcomes
from reeltag.inference.metrics.video_metrics import Floats

COLUMNS = ("id", "class", "name", "score", "rank", "label", "predicted")
GROUP_ROWS = 1 << 20  # of a Parquet file's row group
ENDINGS = (".csv", ".parquet")
INSTEAD = "write .csv"


def refuse_outcomes_ending(path: Path) -> None:
    """Refuse a path for `write_outcomes` before a model is loaded.

    Raises:
        UsageError: the ending is unknown, or pyarrow is not installed.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path}: the ending decides the format; use .csv or .parquet")
    if path.suffix == ".parquet":
        import_pyarrow(INSTEAD)


def write_outcomes(path: Path, outcomes: Outcomes, label_names: Sequence[str]) -> None:
    """Write a row for each label and likely class of each video, as CSV or Parquet.

    The columns are id, class (its number), name, score, rank (from 1 for a video's most probable class; empty after the
    20th), label and predicted (1 or 0 in CSV): the score reaches the threshold.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, outcomes, label_names)
    else:
        _write_csv(path, COLUMNS, _outcome_rows(outcomes, label_names))


def write_classes(
    path: Path, class_ap: Floats, outcomes: Outcomes, label_names: Sequence[str], resampled: Resampled | None = None
) -> None:
    """Write a CSV with a line for each class: its metrics, and with resampled metrics the ends of the AP's interval."""
    each, errors = outcomes.at_threshold.class_metrics(), outcomes.calibration_errors()
    columns: dict[str, Iterable[str]] = {
        "class": map(str, range(outcomes.classes_count)),
        "name": label_names,
        "ap": _cells(class_ap),
    }
    if resampled is not None:
        columns |= dict(zip(("ap_low", "ap_high"), map(_cells, resampled.class_intervals), strict=True))
    columns |= {"labels": map(str, outcomes.positives.tolist())}
    columns |= {name: _cells(values) for name, values in vars(each).items()} | {"calibration_error": _cells(errors)}
    _write_csv(path, list(columns), zip(*columns.values(), strict=True))


def write_fiftyone(path: Path, outcomes: Outcomes, label_names: Sequence[str]) -> None:
    """Write a row for each video, as FiftyOne's `CSVDataset` reads it: filepath, ground_truth and predictions.

    `filepath` is the video's id. The other cells are JSON lists of objects with the arguments of
    `fiftyone.Classification`: `label`, and of predictions `confidence`.
    """
    _write_csv(path, ("filepath", "ground_truth", "predictions"), _fiftyone_rows(outcomes, label_names))


def _fiftyone_rows(outcomes: Outcomes, label_names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    starts = np.searchsorted(outcomes.videos, np.arange(len(outcomes.ids) + 1))
    for video, name in enumerate(outcomes.ids):
        rows = np.arange(starts[video], starts[video + 1])
        said = rows[outcomes.predicted[rows]]
        said = said[np.argsort(-outcomes.scores[said], kind="stable")]
        labels = [{"label": label_names[number]} for number in outcomes.classes[rows[outcomes.labels[rows]]].tolist()]
        predictions = [
            {"label": label_names[number], "confidence": round(score, 6)}
            for number, score in zip(outcomes.classes[said].tolist(), outcomes.scores[said].tolist(), strict=True)
        ]
        yield name, json.dumps(labels, ensure_ascii=False), json.dumps(predictions, ensure_ascii=False)


def _outcome_rows(outcomes: Outcomes, label_names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    columns = (outcomes.videos, outcomes.classes, outcomes.scores, outcomes.ranks, outcomes.labels, outcomes.predicted)
    for video, number, score, rank, label, predicted in zip(*(each.tolist() for each in columns), strict=True):
        yield outcomes.ids[video], number, label_names[number], f"{score:.6f}", rank or "", int(label), int(predicted)


def _write_parquet(path: Path, outcomes: Outcomes, label_names: Sequence[str]) -> None:
    arrow, files = import_pyarrow(INSTEAD)
    ids, names = arrow.array(outcomes.ids, arrow.string()), arrow.array(label_names, arrow.string())
    kinds = (
        arrow.string(),
        arrow.int32(),
        arrow.string(),
        arrow.float32(),
        arrow.int32(),
        arrow.bool_(),
        arrow.bool_(),
    )
    schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    with atomic_path(path) as temporary, files.ParquetWriter(temporary, schema) as writer:
        for begin in range(0, len(outcomes.videos), GROUP_ROWS):
            part = slice(begin, begin + GROUP_ROWS)
            classes, ranks = outcomes.classes[part].astype(np.int32), outcomes.ranks[part].astype(np.int32)
            columns = [
                ids.take(arrow.array(outcomes.videos[part])),
                arrow.array(classes),
                names.take(arrow.array(classes)),
                arrow.array(outcomes.scores[part]),
                arrow.array(ranks, mask=ranks == 0),
                arrow.array(outcomes.labels[part]),
                arrow.array(outcomes.predicted[part]),
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _cells(values: Floats) -> list[str]:
    """Format numbers with five decimals; NaN is an empty cell."""
    return ["" if np.isnan(value) else f"{value:.5f}" for value in values.tolist()]
