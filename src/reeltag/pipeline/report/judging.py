"""Each class of the test set: its metrics, and the videos on which the file is most wrong about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reeltag.inference.metrics.bootstrap import Resampled
from reeltag.inference.metrics.outcomes import Outcomes
from reeltag.pipeline.report.results import ClassResults, Confusion, Judged, Mistake, rounded

MISTAKES = 5  # false positives of a class, and as many missed videos …
ALL_MISTAKES = 3000  # … or fewer, so that so many of either kind are in the page, but one of each class
MISTAKE_BYTES = 230  # of `classes.json`, measured on 527 classes
TAGS = 3
CONFUSED = 20


def judged_bytes(classes: int) -> int:
    """Return about how many bytes `classes.json` has."""
    return 2 * _most_mistakes(classes) * MISTAKE_BYTES * classes


def _most_mistakes(classes: int) -> int:
    return max(1, min(MISTAKES, ALL_MISTAKES // classes))


def mistakes_of_classes(outcomes: Outcomes) -> list[tuple[list[int], list[int]]]:
    """Return rows of each class: the most probable false positives, and the least probable labels."""
    most = _most_mistakes(outcomes.classes_count)
    return [
        (outcomes.false_positives(number, most).tolist(), outcomes.missed(number, most).tolist())
        for number in range(outcomes.classes_count)
    ]


def judged_classes(
    outcomes: Outcomes,
    mistakes: Sequence[tuple[Sequence[int], Sequence[int]]],
    courses: Mapping[int, tuple[int, list[float]]],
    resampled: Resampled | None,
) -> Judged:
    """Return the content of `classes.json`.

    Args:
        outcomes: labels and predictions of the file.
        mistakes: rows of each class, from `mistakes_of_classes`.
        courses: of these rows, the frames of the video, and the probability of the class over time.
        resampled: metrics of the file on videos drawn again; None for segments, whose classes have no intervals.
    """

    def mistake(row: int) -> Mistake:
        rows = outcomes.rows_of(int(outcomes.videos[row]))
        scores = outcomes.scores[rows].astype(float).round(3).tolist()
        return {
            "id": outcomes.ids[outcomes.videos[row]],
            "score": rounded(outcomes.scores[row]),
            "labels": outcomes.classes[rows[outcomes.labels[rows]]].tolist(),
            "tags": list(zip(outcomes.classes[rows].tolist(), scores, strict=True))[:TAGS],
            "frames": courses[row][0],
            "strip": courses[row][1],
        }

    at = outcomes.at_threshold
    metrics, errors = at.class_metrics(), outcomes.calibration_errors()
    unknown = np.full(outcomes.classes_count, np.nan)
    low, high = (unknown, unknown) if resampled is None else resampled.class_intervals
    classes: list[ClassResults] = [
        {
            "interval": None if np.isnan(low[number]) else (rounded(low[number]), rounded(high[number])),
            "precision": rounded(metrics.precision[number]),
            "recall": rounded(metrics.recall[number]),
            "f1": rounded(metrics.f1[number]),
            "calibration_error": None if np.isnan(errors[number]) else rounded(errors[number]),
            "curve": outcomes.precision_recall(number).round(3).tolist(),
            "false_positives": [mistake(row) for row in wrong],
            "missed": [mistake(row) for row in missed],
        }
        for number, (wrong, missed) in enumerate(mistakes)
    ]
    intervals = {} if resampled is None else {metric: _rounded(resampled.interval(metric)) for metric in ("gap", "map")}
    confused: list[Confusion] = [
        {"label": pair.label, "predicted": pair.predicted, "videos": pair.videos, "expected": rounded(pair.expected)}
        for pair in outcomes.confused(CONFUSED)
    ]
    return {
        "at_threshold": at.summary(),
        "intervals": intervals,
        "classes": classes,
        "confused": confused,
    }


def _rounded(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return ends and (rounded(ends[0]), rounded(ends[1]))
