"""MAP@K over segments, as the third YouTube-8M challenge (2019) defined it.

MAP@K = mean over classes of Σ_k P(k)·rel(k) / N_c. A class's list has the K segments of all videos with the highest
scores; segments without a rating for the class are then skipped, so k counts rated segments and rel(k) is the rating of
the k-th (google/youtube-8m, `segment_eval_inference.py`). N_c is the number of segments rated positive, in the list or
not; classes without any do not count. Equal scores keep the order in which segments were added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from reeltag.inference.metrics.video_metrics import Floats, average_precision

TOP_SEGMENTS = 100_000  # K of the challenge

_UNRATED = -1


class SegmentRanking:
    """The K highest-scoring segments of each class so far, in at most 10 bytes per segment and class.

    Args:
        count: C, number of classes.
        classes: classes that can be rated; all by default.
        top: K.
    """

    def __init__(self, count: int, classes: Sequence[int] | None = None, top: int = TOP_SEGMENTS) -> None:
        self.count, self.top = count, top
        self.classes = np.arange(count) if classes is None else np.array(classes)
        self.positives = np.zeros(len(self.classes), np.int64)
        self._scores: list[npt.NDArray[np.float32]] = []  # each [classes, some segments]
        self._ratings: list[npt.NDArray[np.int8]] = []  # ratings of the same segments: 0, 1 or unrated
        self._waiting = 0  # segments added since the lists were last cut

    def add(self, probabilities: Tensor, labels: Tensor, rated: Tensor) -> None:
        """Add B segments.

        Args:
            probabilities: [B, C] float32.
            labels: [B, C] bool.
            rated: [B, C] bool, true for classes with a rating.
        """
        ratings = np.where(rated.cpu().numpy(), labels.cpu().numpy(), _UNRATED).astype(np.int8)[:, self.classes].T
        self.positives += (ratings == 1).sum(1)
        self._scores.append(probabilities.cpu().numpy()[:, self.classes].T)
        self._ratings.append(ratings)
        self._waiting += len(probabilities)
        if self._waiting >= self.top:
            self._cut()

    def class_ap(self) -> Floats:
        """Return the average precision at K of each class [C]; NaN for classes without a positive rating."""
        self._cut()
        precisions = np.full(self.count, np.nan)
        if self._ratings:
            for label, ratings, positives in zip(self.classes, self._ratings[0], self.positives.tolist(), strict=True):
                if positives:
                    precisions[label] = average_precision(ratings[ratings != _UNRATED] == 1, positives)
        return precisions

    def _cut(self) -> None:
        """Sort the segments and keep the K highest of each class."""
        if not self._waiting:
            return
        scores, ratings = np.concatenate(self._scores, axis=1), np.concatenate(self._ratings, axis=1)
        self._scores, self._ratings, self._waiting = [], [], 0
        kept = min(self.top, scores.shape[1])
        for row, column in zip(scores, ratings, strict=True):  # in place, one class at a time
            order = np.argsort(-row, kind="stable")[:kept]
            row[:kept], column[:kept] = row[order], column[order]
        self._scores, self._ratings = [scores[:, :kept].copy()], [ratings[:, :kept].copy()]
