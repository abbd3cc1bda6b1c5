"""Labels and predictions of each video that matter for judging a model, and the metrics at a threshold.

GAP and mAP need only the order of predictions. Precision, recall, the mistakes of a class and confused classes need a
decision: a class is predicted for a video if its probability is at least the threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import UsageError
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.video_metrics import TOP_K, Floats, Integers, top_k

THRESHOLD = 0.5
CALIBRATION_BINS = 10  # of equal width, from 0 to 1
CURVE_POINTS = 20

Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ThresholdMetrics:
    """Precision, recall and F1 at a threshold, as arrays [C] by class or as single numbers.

    A ratio without a denominator is 0.
    """

    precision: Floats
    recall: Floats
    f1: Floats

    @classmethod
    def of(cls, hits: npt.ArrayLike, predicted: npt.ArrayLike, positives: npt.ArrayLike) -> ThresholdMetrics:
        """Compute the ratios of counts, which may be numbers or arrays.

        Args:
            hits: predicted labels.
            predicted: predictions.
            positives: labels.
        """
        found, said, true = (np.asarray(counts, np.float64) for counts in (hits, predicted, positives))
        return cls(_ratio(found, said), _ratio(found, true), _ratio(2 * found, said + true))


@dataclass(frozen=True)
class AtThreshold:
    """Numbers of labels and predictions of each class at a threshold, and the metrics that follow from them.

    Attributes:
        threshold: least probability of a predicted class.
        hits: [C], labels that are predicted.
        predicted: [C], predictions.
        positives: [C], labels.
    """

    threshold: float
    hits: Integers
    predicted: Integers
    positives: Integers

    def __add__(self, other: AtThreshold) -> AtThreshold:
        """Return the numbers of other videos beside these, at the same threshold."""
        return AtThreshold(
            self.threshold,
            self.hits + other.hits,
            self.predicted + other.predicted,
            self.positives + other.positives,
        )

    def class_metrics(self) -> ThresholdMetrics:
        """Return precision, recall and F1 of each class."""
        return ThresholdMetrics.of(self.hits, self.predicted, self.positives)

    def micro(self) -> ThresholdMetrics:
        """Return precision, recall and F1 of all predictions together."""
        return ThresholdMetrics.of(self.hits.sum(), self.predicted.sum(), self.positives.sum())

    def macro(self) -> ThresholdMetrics:
        """Return the means of precision, recall and F1 over the classes with labels."""
        each, known = self.class_metrics(), self.positives > 0
        means = (values[known].mean() if known.any() else np.zeros(()) for values in vars(each).values())
        return ThresholdMetrics(*means)

    def summary(self) -> dict[str, float]:
        """Return the threshold with micro- and macro-averaged metrics for JSON, rounded to 5 decimals."""
        averages = {"micro": self.micro(), "macro": self.macro()}
        scalars = {
            f"{name}_{average}": round(float(value), 5)
            for average, metrics in averages.items()
            for name, value in vars(metrics).items()
        }
        return {"threshold": self.threshold, **scalars}


class ConfusedPair(NamedTuple):
    """Class that is predicted for videos of another class.

    Attributes:
        label: class of the videos, which is not predicted.
        predicted: class that is predicted and is no label.
        videos: number of such videos.
        expected: their number if missed labels and wrong predictions were independent.
    """

    label: int
    predicted: int
    videos: int
    expected: float


@dataclass(frozen=True)
class Outcomes:
    """Labels and predictions of N videos in R rows, one for each class of a video that matters.

    Those are the labels of the video, the classes that reach the threshold, and its 20 most probable classes. Classes
    without a known label have no row. Rows are ordered by video, and in a video by class.

    Attributes:
        ids: [N], of the videos.
        classes_count: C, number of classes.
        threshold: least probability of a predicted class.
        videos: [R] int64, indices of the videos.
        classes: [R] int64.
        scores: [R] float32, probabilities.
        ranks: [R] int64, from 1 for the most probable class of a video; 0 for those after the 20th.
        labels: [R] bool, True if the class is a label of the video.
    """

    ids: tuple[str, ...]
    classes_count: int
    threshold: float
    videos: Integers
    classes: Integers
    scores: npt.NDArray[np.float32]
    ranks: Integers
    labels: Booleans

    @classmethod
    def of(cls, part: Predictions, threshold: float = THRESHOLD) -> Outcomes:
        """Take the rows of labelled predictions that matter.

        Raises:
            UsageError: the threshold is not above 0 and at most 1.
        """
        check_threshold(threshold)
        assert part.labels is not None  # `Evaluation` refuses videos without labels
        scores, labels = part.comparable.cpu(), part.labels.cpu()
        _, best = top_k(scores, TOP_K)
        ranks = np.zeros(scores.shape, np.int64)
        np.put_along_axis(ranks, best.numpy(), np.arange(1, best.shape[1] + 1)[None], axis=1)
        probabilities, truth = scores.numpy(), labels.numpy()
        kept = ((ranks > 0) | truth | (probabilities >= threshold)) & (probabilities >= 0)
        videos, classes = np.nonzero(kept)
        return cls(part.ids, truth.shape[1], threshold, videos, classes, probabilities[kept], ranks[kept], truth[kept])

    @classmethod
    def merge(cls, parts: Iterable[Outcomes]) -> Outcomes:
        """Concatenate the rows of one or more parts, in their order."""
        each = list(parts)
        starts = np.cumsum([0, *(len(part.ids) for part in each)])
        return cls(
            tuple(chain.from_iterable(part.ids for part in each)),
            each[0].classes_count,
            each[0].threshold,
            np.concatenate([part.videos + start for part, start in zip(each, starts, strict=False)]),
            np.concatenate([part.classes for part in each]),
            np.concatenate([part.scores for part in each]),
            np.concatenate([part.ranks for part in each]),
            np.concatenate([part.labels for part in each]),
        )

    @cached_property
    def predicted(self) -> Booleans:
        """[R], True if the probability reaches the threshold."""
        return self.scores >= self.threshold

    @cached_property
    def positives(self) -> Integers:
        """[C], number of labels of each class."""
        return self._count(self.labels)

    @property
    def at_threshold(self) -> AtThreshold:
        """Numbers of labels and predictions of each class at the threshold."""
        hits = self._count(self.predicted & self.labels)
        return AtThreshold(self.threshold, hits, self._count(self.predicted), self.positives)

    @cached_property
    def by_class(self) -> list[Integers]:
        """Rows of each class, the most probable first; equal ones in the order of the videos."""
        order = np.lexsort((-self.scores, self.classes))
        return np.split(order, np.cumsum(np.bincount(self.classes, minlength=self.classes_count))[:-1])

    def calibration_errors(self) -> Floats:
        """Return the expected calibration error of each class [C], within its tags among a video's 20; NaN without any.

        The error is the mean over ten bins of equal width of |probability - fraction of labels|, weighted by tags.
        """
        tags = self.ranks > 0
        bins = np.minimum((self.scores[tags] * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        cells, shape = self.classes[tags] * CALIBRATION_BINS + bins, (self.classes_count, CALIBRATION_BINS)
        gaps = np.bincount(cells, self.scores[tags].astype(float) - self.labels[tags], minlength=np.prod(shape))
        counts = self._count(tags)
        errors = np.full(self.classes_count, np.nan)
        np.divide(np.abs(gaps.reshape(shape)).sum(1), counts, out=errors, where=counts > 0)
        return errors

    def precision_recall(self, number: int) -> Floats:
        """Return the precision of a class at recalls of 1/20, 2/20, …, 1: an array of 20.

        It is the precision down to the tag with which the recall is reached, 0 if the tags among the videos' 20 never
        reach it.
        """
        rows = self.by_class[number]
        positions = np.flatnonzero(self.labels[rows[self.ranks[rows] > 0]])
        precisions = np.arange(1, len(positions) + 1) / (positions + 1)
        recalls = np.arange(1, CURVE_POINTS + 1)
        needed = -(-recalls * self.positives[number] // CURVE_POINTS)  # labels, rounded up
        curve = np.zeros(CURVE_POINTS)
        reached = (needed > 0) & (needed <= len(positions))
        curve[reached] = precisions[needed[reached] - 1]
        return curve

    def false_positives(self, number: int, most: int) -> Integers:
        """Return rows of the most probable tags of a class that are no labels, the most probable first."""
        rows = self.by_class[number]
        return rows[~self.labels[rows]][:most]

    def missed(self, number: int, most: int) -> Integers:
        """Return rows of the least probable labels of a class, the least probable first."""
        rows = self.by_class[number]
        return rows[self.labels[rows]][::-1][:most]

    def rows_of(self, video: int) -> Integers:
        """Return the rows of a video, the most probable class first."""
        begin, end = np.searchsorted(self.videos, [video, video + 1])
        return np.arange(begin, end)[np.argsort(-self.scores[begin:end], kind="stable")]

    def confused(self, most: int) -> list[ConfusedPair]:
        """Return the pairs of classes that are confused most, by more videos than chance would give.

        They are ordered by the log-likelihood ratio of their number and the expected one (Dunning 1993); pairs of equal
        ratio in class order.
        """
        missed, wrong = np.flatnonzero(self.labels & ~self.predicted), np.flatnonzero(self.predicted & ~self.labels)
        firsts = np.searchsorted(self.videos[wrong], self.videos[missed])
        counts = np.searchsorted(self.videos[wrong], self.videos[missed], side="right") - firsts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        others = self.classes[wrong[np.repeat(firsts, counts) + within]]
        codes = np.repeat(self.classes[missed], counts) * self.classes_count + others
        pairs, found = np.unique(codes, return_counts=True)
        labels, predictions = np.divmod(pairs, self.classes_count)
        by_class = [np.bincount(self.classes[rows], minlength=self.classes_count) for rows in (missed, wrong)]
        expected = by_class[0][labels] * by_class[1][predictions] / max(len(self.ids), 1)
        ratios = found * np.log(found / expected) - (found - expected)
        ratios[found <= expected] = 0
        order = np.argsort(-ratios, kind="stable")[:most]
        columns = (each[order[ratios[order] > 0]].tolist() for each in (labels, predictions, found, expected))
        return [ConfusedPair(*values) for values in zip(*columns, strict=True)]

    def _count(self, rows: Booleans) -> Integers:
        return np.bincount(self.classes[rows], minlength=self.classes_count)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is no probability above 0.

    Raises:
        UsageError: the threshold is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold: must be above 0 and at most 1, not {threshold}")


def worst_first(class_ap: Sequence[float], positives: Sequence[int], enough: int) -> list[int]:
    """Return the classes by average precision, the worst first; those with fewer than enough labels come last."""
    return sorted(
        range(len(class_ap)),
        key=lambda number: (positives[number] < enough, positives[number] == 0, class_ap[number], -positives[number]),
    )


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    ratios = np.zeros(np.shape(denominator))
    return np.divide(numerator, denominator, out=ratios, where=denominator > 0)
