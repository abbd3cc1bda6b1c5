"""Thresholds for people and programs: a summary, and a row for each class."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np

from reeltag.artifact.tagging_rule import Thresholds
from reeltag.core.text import NAME_SEPARATOR, counted, one_line
from reeltag.inference.metrics.binomial import wilson_interval

LISTED = 10  # names of classes in the summary
CHOSEN, UNMET, UNTAGGED, NO_POSITIVES = "chosen", "cannot be met", "cheapest untagged", "no positives"


def class_rows(thresholds: Thresholds, label_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is known of each of C classes, as JSON.

    A row has `class`, `name`, `state` (chosen, cannot be met, cheapest untagged, no positives), `threshold`,
    `positives`, `tagged` and `correct`, and precision and recall on the videos of the choice with 95 % intervals; None
    without a threshold.
    """
    shares = {
        "precision": (thresholds.correct, thresholds.tagged),
        "recall": (thresholds.correct, thresholds.positives),
    }
    rows = []
    for number, name in enumerate(label_names):
        met, positives = bool(thresholds.met[number]), int(thresholds.positives[number])
        row: dict[str, Any] = {
            "class": number,
            "name": name,
            "state": CHOSEN if met else _unmet(thresholds) if positives else NO_POSITIVES,
            "threshold": round(float(thresholds.values[number]), 8) if met else None,
            "positives": positives,
            "tagged": int(thresholds.tagged[number]),
            "correct": int(thresholds.correct[number]),
        }
        for key, (correct, trials) in shares.items():
            low, high = wilson_interval(correct[number], trials[number])
            numbers = (correct[number] / trials[number], low, high) if met else (None, None, None)
            for ending, value in zip(("", "_low", "_high"), numbers, strict=True):
                row[key + ending] = None if value is None else round(float(value), 5)
        rows.append(row)
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of classes as CSV; cells of classes without a threshold are empty."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_lines(thresholds: Thresholds, label_names: Sequence[str]) -> list[str]:
    """Return a summary: how many classes have a threshold, how good they are, and which classes have none."""
    met, positives = thresholds.met, thresholds.positives > 0
    videos = counted(thresholds.about["videos"], "video")
    lines = [f"{thresholds.about['goal']}: {met.sum():,} of {len(met):,} classes have a threshold, chosen on {videos}"]
    if met.any():
        precision, recall = (
            (thresholds.correct[met] / trials[met]).mean() for trials in (thresholds.tagged, thresholds.positives)
        )
        lines.append(
            f"  on these videos, which is optimistic: mean precision {precision:.3f}, mean recall {recall:.3f}"
        )
    for what, classes in ((_unmet(thresholds), ~met & positives), (NO_POSITIVES, ~positives)):
        if classes.any():
            names = [one_line(label_names[number]) for number in np.flatnonzero(classes)[:LISTED]]
            more = f"{NAME_SEPARATOR}…" if classes.sum() > LISTED else ""
            lines.append(f"  {classes.sum():,} {what}: {NAME_SEPARATOR.join(names)}{more}")
    return lines


def _unmet(thresholds: Thresholds) -> str:
    """Return the state of a class that has positives and no threshold."""
    return UNTAGGED if thresholds.about["goal"].startswith("cost") else UNMET
