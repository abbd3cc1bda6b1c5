"""Choose a threshold for each class by its precision, its recall, F1 or the cost of errors, on labelled videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from reeltag.artifact.tagging_rule import Floats, Thresholds
from reeltag.core.errors import UsageError
from reeltag.inference.metrics.binomial import wilson_interval

# A precision or recall is claimed where the lower end of its 80 % interval is at least the goal, so that one in ten
# such claims would be wrong if the threshold were not chosen on the same videos.
CLAIMED = 0.8

Numbers = npt.NDArray[np.int64]
# From the numbers of tagged and correct videos [K] of possible thresholds, from high to low, and the number of
# positives, the index of the best; None if none meets the goal.
Choice = Callable[[Numbers, Numbers, int], int | None]


@dataclass(frozen=True)
class Goal:
    """Goal by which the threshold of a class is chosen.

    Attributes:
        kind: `precision` and `recall`: claim at least `value`, with as much of the other as possible; `f1`: highest F1;
            `cost`: lowest cost of errors.
        value: precision or recall.
        fp: cost of a false positive.
        fn: cost of a missed video.
    """

    kind: Literal["precision", "recall", "f1", "cost"]
    value: float = 0.0
    fp: float = 1.0
    fn: float = 1.0

    def __str__(self) -> str:
        if self.kind == "cost":
            return f"cost fp={self.fp:g},fn={self.fn:g}"
        return self.kind if self.kind == "f1" else f"{self.kind} {self.value:g}"

    def choose(self, tagged: Numbers, correct: Numbers, positives: int) -> int | None:
        """Choose among K possible thresholds of a class, from high to low.

        Args:
            tagged: [K] videos with at least each threshold, ascending.
            correct: [K] of these, videos with the class.
            positives: all videos with the class.

        Returns:
            The index; None if none meets the goal, or none costs less than to tag no video.
        """
        if self.kind in ("precision", "recall"):
            trials = tagged if self.kind == "precision" else np.full_like(tagged, positives)
            meets = np.flatnonzero(wilson_interval(correct, trials, CLAIMED)[0] >= self.value)
            if not len(meets):
                return None
            return int(meets[-1 if self.kind == "precision" else 0])
        if self.kind == "f1":
            return int(np.argmax(2 * correct / (tagged + positives)))
        costs = self.fp * (tagged - correct) + self.fn * (positives - correct)
        best = int(np.argmin(costs))
        return best if costs[best] < self.fn * positives else None


def parse_goal(precision: float | None, recall: float | None, f1: bool, cost: str | None) -> Goal | None:
    """Return the goal that was given; None without one.

    Args:
        precision: claimed of each class, above 0 and below 1.
        recall: likewise.
        f1: True for the highest F1.
        cost: such as `fp=1,fn=5`.

    Raises:
        UsageError: several are given, or one is invalid.
    """
    given = {"precision": precision is not None, "recall": recall is not None, "f1": f1, "cost": cost is not None}
    if len(names := [name for name, there in given.items() if there]) > 1:
        raise UsageError(f"{' and '.join(names)}: thresholds are chosen by one goal; give one of them")
    for name, value in (("precision", precision), ("recall", recall)):
        if value is not None:
            if not 0 < value < 1:
                raise UsageError(f"{name} {value:g}: must be above 0 and below 1, such as 0.9")
            return Goal("precision" if name == "precision" else "recall", value)
    if cost is not None:
        return _costs(cost)
    return Goal("f1") if f1 else None


def _costs(text: str) -> Goal:
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        costs = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        costs = {}
    if set(costs) != {"fp", "fn"} or len(pairs) != 2 or not all(0 < value < np.inf for value in costs.values()):
        raise UsageError(f"cost {text!r}: give the costs of both errors, above 0, such as fp=1,fn=5")
    return Goal("cost", fp=costs["fp"], fn=costs["fn"])


def choose_class_thresholds(
    probabilities: Tensor, labels: Tensor, goal: Goal, about: Mapping[str, Any], *, rated: Tensor | None = None
) -> Thresholds:
    """Choose the threshold of each class on N labelled examples.

    A threshold lies in the middle between two neighbouring probabilities, so that rounding moves no video across it.

    Args:
        probabilities: [N, C] float32.
        labels: [N, C] bool.
        goal: by which they are chosen.
        about: where the examples are from; the goal and their number are added.
        rated: [N, C] bool, True for classes with a known label; all by default.
    """
    classes = probabilities.shape[1]
    values: Floats = np.full(classes, np.inf, np.float32)
    positives, tagged, correct = (np.zeros(classes, np.int32) for _ in range(3))
    for number in range(classes):
        scores, hits = probabilities[:, number].numpy(), labels[:, number].numpy()
        if rated is not None:
            scores, hits = scores[rated[:, number].numpy()], hits[rated[:, number].numpy()]
        positives[number] = hits.sum()
        if positives[number]:
            values[number], tagged[number], correct[number] = _choose(scores, hits, goal)
    known = {"goal": str(goal), "videos": len(probabilities), **about}
    return Thresholds(values, positives, tagged, correct, known)


def _choose(scores: Floats, hits: npt.NDArray[np.bool_], goal: Goal) -> tuple[float, int, int]:
    """Return the threshold of a class, and the numbers of tagged and of correct videos; infinity, 0, 0 if none."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of those with equal probabilities
    tagged, correct = last + 1, np.cumsum(hits[order], dtype=np.int64)[last]
    index = goal.choose(tagged, correct, int(hits.sum()))
    if index is None:
        return np.inf, 0, 0
    lowest = scores[last[index]]
    below = scores[last[index] + 1] if index + 1 < len(last) else np.float32(0)
    middle = np.float32((float(lowest) + float(below)) / 2)
    return float(middle if middle > below else lowest), int(tagged[index]), int(correct[index])
