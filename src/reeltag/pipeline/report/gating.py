"""What a report measures beside the metrics: calibration, and what a gate makes of labels that come together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

BINS = 10
FREQUENT_CLASSES = 500  # of which pairs are looked at
MIN_VIDEOS = 5  # that have both labels of a pair
PAIRS = 12


def rounded(value: float) -> float:
    """To five decimals, which do not depend on how many threads added."""
    return round(float(value), 5)


def calibration(scores: Floats, hits: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """How often tags of a probability are right: a reliability curve, and the expected calibration error.

    Args:
        scores: of any shape, videos' highest probabilities.
        hits: of the same, whether the class is a label.

    Returns:
        `bins`, of the ten of equal width those that hold scores: their `count`, mean `score` and `share` of hits; and
        `ece`, the mean of |score − share| weighted by count (Guo et al. 2017, section 2).
    """
    places = np.minimum((scores * BINS).astype(int), BINS - 1).ravel()
    counts = np.bincount(places, minlength=BINS)
    sums = np.bincount(places, scores.ravel().astype(float), BINS)
    right = np.bincount(places, hits.ravel(), BINS)
    bins = [
        {"count": int(count), "score": rounded(total / count), "share": rounded(found / count)}
        for count, total, found in zip(counts, sums, right, strict=True)
        if count
    ]
    return {"bins": bins, "ece": rounded(np.abs(sums - right).sum() / scores.size)}


@dataclass(frozen=True)
class Together:
    """How often classes come together in V videos, by labels or by probabilities; + adds videos.

    A video's classes count as independent given its probabilities, so a pair comes together with their product.

    Attributes:
        pairs: [C, C], sum over videos of the products.
        each: [C], sum over videos.
        videos: V.
    """

    pairs: Floats
    each: Floats
    videos: int

    @classmethod
    def of(cls, values: Floats) -> Together:
        """Of probabilities, or labels as 0 and 1: [V, C]."""
        return cls((values.T @ values).astype(float), values.sum(0, dtype=float), len(values))

    @classmethod
    def none(cls, classes: int) -> Together:
        """Of no videos."""
        return cls(np.zeros((classes, classes)), np.zeros(classes), 0)

    def __add__(self, other: Together) -> Together:
        return Together(self.pairs + other.pairs, self.each + other.each, self.videos + other.videos)

    def log_lift(self) -> Floats:
        """[C, C], log₂ of how much more often a pair comes together than if its classes were independent."""
        with np.errstate(divide="ignore", invalid="ignore"):
            lift: Floats = np.log2(self.pairs * self.videos / np.outer(self.each, self.each))
        return lift


def gating_gain(labels: Together, without: Together, gated: Together) -> dict[str, Any] | None:
    """How a gate on the probabilities changes the log-lift of pairs of classes, beside that of the labels.

    Only pairs count that at least five videos have, both classes of which the model gives some probability.

    Returns:
        `pairs`, how many these are; `error_without` and `error_gated`, mean distance from the labels' log-lift;
        `changed`, the twelve pairs that changed most: `classes`, two numbers, `videos` with both, and the log-lifts
        `labels`, `without` and `gated`. None where there is no such pair.
    """
    first, second = np.triu_indices(len(labels.each), 1)
    true, before, after = (each.log_lift()[first, second] for each in (labels, without, gated))
    together = labels.pairs[first, second]
    kept = np.flatnonzero((together >= MIN_VIDEOS) & np.isfinite(before) & np.isfinite(after))
    if not len(kept):
        return None
    most = kept[np.argsort(-np.abs(after - before)[kept], kind="stable")][:PAIRS]
    return {
        "pairs": len(kept),
        "error_without": rounded(np.abs(before - true)[kept].mean()),
        "error_gated": rounded(np.abs(after - true)[kept].mean()),
        "changed": [
            {
                "classes": [int(first[n]), int(second[n])],
                "videos": int(together[n]),
                "labels": rounded(true[n]),
                "without": rounded(before[n]),
                "gated": rounded(after[n]),
            }
            for n in most
        ],
    }
