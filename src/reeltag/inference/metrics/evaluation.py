"""Metrics of labelled predictions, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from reeltag.core.errors import DataError
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.outcomes import AtThreshold, Outcomes
from reeltag.inference.metrics.segment_metrics import SegmentRanking
from reeltag.inference.metrics.video_metrics import Metrics


class Evaluation:
    """Metrics of labelled predictions, accumulated batch by batch.

    Args:
        all_scores: keep all scores in memory, for `Scores.map_all`.
        classes: classes in which segments can be rated; all by default.
        threshold: count the labels and predictions at this threshold; none by default.
        rows: also keep the rows of `Outcomes`, 29 bytes each and some 24 a video.
    """

    def __init__(
        self,
        *,
        all_scores: bool = False,
        classes: Sequence[int] | None = None,
        threshold: float | None = None,
        rows: bool = False,
    ) -> None:
        self._all_scores, self._classes, self._threshold, self._rows = all_scores, classes, threshold, rows
        self._counts: AtThreshold | None = None
        self._outcomes: list[Outcomes] = []
        self._parts: list[Metrics] = []
        self._positives = self._examples = 0
        self._ranking: SegmentRanking | None = None

    def add(self, part: Predictions) -> None:
        """Add labelled predictions; segments without a rating count only in the ranking of each class.

        Raises:
            DataError: a video has no labels.
        """
        if part.labels is None:
            raise DataError(
                f"video {part.ids[0]!r} or one beside it has no labels, so nothing can be measured; "
                "evaluate on labelled shards, or use `reeltag predict`"
            )
        if self._threshold is not None:
            outcomes = Outcomes.of(part, self._threshold)
            counts = outcomes.at_threshold
            self._counts = counts if self._counts is None else self._counts + counts
            self._outcomes += [outcomes] if self._rows else []
        scores, labels = part.comparable, part.labels
        if part.rated is not None:
            self._ranking = self._ranking or SegmentRanking(labels.shape[1], self._classes)
            self._ranking.add(part.probabilities, labels, part.rated)
            rated = part.rated.any(1)
            scores, labels = scores[rated], labels[rated]
        self._positives += int(labels.sum())
        self._examples += len(labels)
        if len(labels):
            self._parts.append(Metrics.of(scores, labels, all_scores=self._all_scores))

    def metrics(self) -> Metrics:
        """Return the metrics of all predictions so far.

        Raises:
            DataError: there are none, or none has a label.
        """
        if not self._parts:
            raise DataError("no videos to evaluate")
        if not self._positives:
            raise DataError(
                f"none of {self._examples:,} videos has a label, so GAP and all other metrics mean nothing; evaluate "
                "on labelled shards (`reeltag predict` needs no labels), or hold out more (data.holdout)"
            )
        segment_ap = self._ranking.class_ap() if self._ranking else None
        return replace(Metrics.merge(self._parts), segment_ap=segment_ap)

    def at_threshold(self) -> AtThreshold:
        """Return the labels and predictions of all videos so far as numbers; there is at least one video."""
        assert self._counts is not None
        return self._counts

    def outcomes(self) -> Outcomes:
        """Return the rows of all videos so far, of which there is at least one."""
        return Outcomes.merge(self._outcomes)


def evaluate_predictions(
    predictions: Iterable[Predictions], *, all_scores: bool = False, classes: Sequence[int] | None = None
) -> Metrics:
    """Compute the metrics of labelled predictions; the arguments are those of `Evaluation`.

    Raises:
        DataError: a video has no labels, there is no video, or none has a label.
    """
    evaluation = Evaluation(all_scores=all_scores, classes=classes)
    for part in predictions:
        evaluation.add(part)
    return evaluation.metrics()
