"""Effect of a gate on the probabilities of a model: how it changes which classes occur together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.pipeline.report.results import Gating, rounded

Floats = npt.NDArray[np.floating[Any]]

FREQUENT_CLASSES = 500  # only pairs of the most frequent classes are compared
MIN_VIDEOS = 5  # a pair counts if at least so many videos have both labels
LISTED_PAIRS = 12


@dataclass(frozen=True)
class CoOccurrence:
    """Co-occurrence of C classes in V videos, by labels or by probabilities; `+` adds more videos.

    The classes of a video count as independent given its probabilities, so a pair occurs with their product.

    Attributes:
        pairs: [C, C], sum of the products over the videos.
        each: [C], sum over the videos.
        videos: V.
    """

    pairs: Floats
    each: Floats
    videos: int

    @classmethod
    def of(cls, values: Floats) -> CoOccurrence:
        """Return the co-occurrence by probabilities, or by labels as 0 and 1: [V, C]."""
        return cls((values.T @ values).astype(float), values.sum(0, dtype=float), len(values))

    @classmethod
    def zeros(cls, classes: int) -> CoOccurrence:
        """Return the co-occurrence in no videos."""
        return cls(np.zeros((classes, classes)), np.zeros(classes), 0)

    def __add__(self, other: CoOccurrence) -> CoOccurrence:
        return CoOccurrence(self.pairs + other.pairs, self.each + other.each, self.videos + other.videos)

    def log_lift(self) -> Floats:
        """Return [C, C]: log₂ of how much more often each pair occurs than if its classes were independent."""
        with np.errstate(divide="ignore", invalid="ignore"):
            lift: Floats = np.log2(self.pairs * self.videos / np.outer(self.each, self.each))
        return lift


def gating_gain(labels: CoOccurrence, without: CoOccurrence, gated: CoOccurrence) -> Gating | None:
    """Compare the log-lift of pairs of classes before and after a gate with that of the labels.

    A pair counts if at least five videos have both labels and the model gives both classes some probability.

    Args:
        labels: co-occurrence by the labels.
        without: by the probabilities before the gate.
        gated: by the probabilities after the gate.

    Returns:
        `pairs`: number of pairs that count. `error_without`, `error_gated`: mean distance from the log-lift of the
        labels. `changed`: the twelve pairs that changed most, with the indices of their `classes`, the number of
        `videos` that have both, and the log-lifts `labels`, `without` and `gated`. None if no pair counts.
    """
    first, second = np.triu_indices(len(labels.each), 1)
    true, before, after = (each.log_lift()[first, second] for each in (labels, without, gated))
    together = labels.pairs[first, second]
    kept = np.flatnonzero((together >= MIN_VIDEOS) & np.isfinite(before) & np.isfinite(after))
    if not len(kept):
        return None
    most = kept[np.argsort(-np.abs(after - before)[kept], kind="stable")][:LISTED_PAIRS]
    return {
        "pairs": len(kept),
        "error_without": rounded(np.abs(before - true)[kept].mean()),
        "error_gated": rounded(np.abs(after - true)[kept].mean()),
        "changed": [
            {
                "classes": (int(first[n]), int(second[n])),
                "videos": int(together[n]),
                "labels": rounded(true[n]),
                "without": rounded(before[n]),
                "gated": rounded(after[n]),
            }
            for n in most
        ],
    }
