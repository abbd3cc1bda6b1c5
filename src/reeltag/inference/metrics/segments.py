"""MAP@K over segments, as the third YouTube-8M challenge (2019) defined it.

MAP@K = mean over classes of Σ_k P(k)·rel(k) / N_c. A class's list has the K segments of all videos with the highest
scores; those that nobody rated for the class are then passed over, so k counts the rated ones and rel(k) is what was
said of the k-th (google/youtube-8m, `segment_eval_inference.py`). N_c are all that were rated positive, in the list or
not, and classes without any do not count. Equal scores keep the order in which segments were added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from reeltag.inference.metrics.gap import Floats, average_precision

TOP_SEGMENTS = 100_000  # K of the challenge

_UNRATED = -1


class SegmentRanking:
    """The K highest segments of each class so far, in 10 bytes a segment and class at most.

    Args:
        count: C, the classes that segments have scores for.
        classes: those that can be rated; all by default.
        top: K.
    """

    def __init__(self, count: int, classes: Sequence[int] | None = None, top: int = TOP_SEGMENTS) -> None:
        self.count, self.top = count, top
        self.classes = np.arange(count) if classes is None else np.array(classes)
        self.positives = np.zeros(len(self.classes), np.int64)
        self._scores: list[npt.NDArray[np.float32]] = []  # each [classes, some segments]
        self._said: list[npt.NDArray[np.int8]] = []  # of the same: 0, 1 or unrated
        self._waiting = 0  # segments since the lists were last cut

    def add(self, probabilities: Tensor, labels: Tensor, rated: Tensor) -> None:
        """Take in B segments.

        Args:
            probabilities: [B, C] float32.
            labels: [B, C] bool, the classes that hold.
            rated: [B, C] bool, the classes that the labels tell of.
        """
        said = np.where(rated.cpu().numpy(), labels.cpu().numpy(), _UNRATED).astype(np.int8)[:, self.classes].T
        self.positives += (said == 1).sum(1)
        self._scores.append(probabilities.cpu().numpy()[:, self.classes].T)
        self._said.append(said)
        self._waiting += len(probabilities)
        if self._waiting >= self.top:
            self._cut()

    def class_ap(self) -> Floats:
        """[C], average precision at K of each class; NaN where nothing was rated positive."""
        self._cut()
        found = np.full(self.count, np.nan)
        if self._said:
            for label, said, positives in zip(self.classes, self._said[0], self.positives.tolist(), strict=True):
                if positives:
                    found[label] = average_precision(said[said != _UNRATED] == 1, positives)
        return found

    def _cut(self) -> None:
        """Sort what is there, and keep K of each class."""
        if not self._waiting:
            return
        scores, said = np.concatenate(self._scores, axis=1), np.concatenate(self._said, axis=1)
        self._scores, self._said, self._waiting = [], [], 0
        kept = min(self.top, scores.shape[1])
        for row, column in zip(scores, said, strict=True):  # in place, a class at a time
            order = np.argsort(-row, kind="stable")[:kept]
            row[:kept], column[:kept] = row[order], column[order]
        self._scores, self._said = [scores[:, :kept].copy()], [said[:, :kept].copy()]
