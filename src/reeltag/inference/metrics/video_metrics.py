"""GAP@20, Hit@1, PERR, mAP and per-class AP, mergeable over batches (paper section 1.2, golden `metrics`).

Sums are float64: in float32 the starter code's GAP is off by 4.8e-4 on 20,000 videos. Ties keep the
order in which videos were added and, within a video, the order of the classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TOP_K = 20

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Metrics over a set of videos.

    Attributes:
        gap: global average precision of each video's 20 highest-scoring classes, pooled.
        hit_at_1: fraction of videos whose highest-scoring class is a label.
        perr: precision at each video's number of labels, averaged over videos.
        map: mean of `class_ap` over all C classes.
        class_ap: [C], average precision of each class within the videos' top 20, or of segments at K; 0 without
            positives.
        videos: number of videos, or of rated segments.
        map_all: mean over the classes with positives of the average precision over all videos' scores, as AudioSet
            reports it; None if not requested.
        map_at_k: for segments, the mean of `class_ap` over the classes with positives (`segment_metrics.py`);
            None for videos.
    """

    gap: float
    hit_at_1: float
    perr: float
    map: float
    class_ap: Floats
    videos: int
    map_all: float | None = None
    map_at_k: float | None = None

    def summary(self) -> dict[str, float]:
        """Return the scalar metrics for JSON, rounded to 5 decimals."""
        scalars = asdict(self)
        del scalars["class_ap"]
        return {name: round(value, 5) for name, value in scalars.items() if value is not None}


@dataclass(frozen=True)
class Metrics:
    """Statistics of videos from which scores are computed; merging concatenates them.

    Attributes:
        scores: [N, k] float32, each video's highest probabilities, descending.
        classes: [N, k] int64, their classes.
        hits: [N, k] bool, true if the class is a label.
        precisions: [N] precision at the video's number of labels.
        positives: [C] labels of each class, in the top k or not.
        everything: [N, C] all scores and all labels, for `Scores.map_all`; None if not requested.
        segment_ap: [C] average precision of each class over segments, NaN without positives; None for videos.
    """

    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    hits: npt.NDArray[np.bool_]
    precisions: Floats
    positives: Integers
    everything: tuple[Tensor, Tensor] | None = None
    segment_ap: Floats | None = None

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor, *, all_scores: bool = False) -> Metrics:
        """Compute the statistics of a batch.

        Args:
            probabilities: [B, C] float32.
            labels: [B, C] bool.
            all_scores: keep all scores for `Scores.map_all`: 5 bytes per video and class, 10 while merging.
        """
        scores, classes = top_k(probabilities, TOP_K)
        hits = labels.gather(1, classes)
        per_video, per_class = _label_counts(labels)
        return cls(
            scores.cpu().numpy(),
            classes.cpu().numpy(),
            hits.cpu().numpy(),
            _precision_at_label_count(probabilities, labels, scores, hits, per_video),
            per_class,
            (probabilities.cpu(), labels.cpu()) if all_scores else None,
        )

    @classmethod
    def merge(cls, parts: Iterable[Metrics]) -> Metrics:
        """Concatenate the statistics of one or more parts, in their order."""
        each = list(parts)
        everything = [part.everything for part in each if part.everything is not None]
        return cls(
            np.concatenate([part.scores for part in each]),
            np.concatenate([part.classes for part in each]),
            np.concatenate([part.hits for part in each]),
            np.concatenate([part.precisions for part in each]),
            np.sum([part.positives for part in each], axis=0),
            (torch.cat([p for p, _ in everything]), torch.cat([y for _, y in everything])) if everything else None,
        )

    @cached_property
    def _by_score(self) -> Integers:
        """Indices that sort the scores in descending order; equal scores keep their order."""
        return np.argsort(-self.scores, axis=None, kind="stable")

    def compute(self) -> Scores:
        """Compute the scores of all videos."""
        class_ap = self._class_ap()
        mean, at_k = float(class_ap.mean()), None
        if self.segment_ap is not None:
            known = self.segment_ap[~np.isnan(self.segment_ap)]
            class_ap, at_k = np.nan_to_num(self.segment_ap), float(known.mean()) if len(known) else 0.0
        return Scores(
            gap=self.gap(),
            hit_at_1=float(self.hits[:, 0].mean()),
            perr=float(self.precisions.mean()),
            map=mean,
            class_ap=class_ap,
            videos=len(self.scores),
            map_all=None if self.everything is None else _mean_over_all(*self.everything),
            map_at_k=at_k,
        )

    def gap(self) -> float:
        """Compute GAP@20 only."""
        return average_precision(self.hits.ravel()[self._by_score], int(self.positives.sum()))

    def _class_ap(self) -> Floats:
        classes = self.classes.ravel()[self._by_score]
        by_class = np.argsort(classes.astype(np.min_scalar_type(len(self.positives))), kind="stable")  # radix sort
        classes, hits = classes[by_class], self.hits.ravel()[self._by_score][by_class]
        positions = np.flatnonzero(hits)
        hit_classes = classes[positions]
        ranks = positions - np.searchsorted(classes, hit_classes) + 1  # within the class
        hit_counts = np.arange(len(hit_classes)) - np.searchsorted(hit_classes, hit_classes) + 1
        return np.bincount(hit_classes, hit_counts / ranks, minlength=len(self.positives)) / np.maximum(
            self.positives, 1
        )


def gap(probabilities: Tensor, labels: Tensor) -> float:
    """Compute only GAP@20 of probabilities [N, C], for searches that evaluate thousands of ensembles."""
    scores, classes = top_k(probabilities, TOP_K)
    hits = labels.gather(1, classes).cpu().numpy()
    return _pooled_precision(scores.cpu().numpy(), hits, int(np.count_nonzero(labels.cpu().numpy())))


def top_k(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest probabilities of each row and their classes; equal ones in class order.

    Args:
        probabilities: [B, C].
        k: number of classes; at most C are returned.

    Returns:
        Probabilities [B, k] in descending order, and classes [B, k] int64.
    """
    count = probabilities.shape[1]
    k = min(k, count)
    scores, classes = probabilities.topk(min(k + 1, count), dim=1)
    # topk does not define the order of ties, and a tie at rank k may even change which classes are included.
    tied = torch.nonzero((scores[:, 1:] == scores[:, :-1]).any(1))[:, 0]
    scores, classes = scores[:, :k].clone(), classes[:, :k].clone()
    if len(tied):
        ranked, order = probabilities[tied].sort(dim=1, descending=True, stable=True)
        scores[tied], classes[tied] = ranked[:, :k], order[:, :k]
    return scores, classes


def _pooled_precision(scores: npt.NDArray[np.float32], hits: npt.NDArray[np.bool_], positives: int) -> float:
    """Compute the average precision of all videos' highest scores, pooled; equal scores keep their order."""
    order = np.argsort(-scores, axis=None, kind="stable")
    return average_precision(hits.ravel()[order], positives)


def average_precision(hits: npt.NDArray[np.bool_], positives: int) -> float:
    """Sum the precision at each hit and divide by the number of positives.

    Args:
        hits: [N] bool, in descending order of score.
        positives: number of positives, in the list or not.
    """
    if positives == 0:
        return 0.0
    ranks = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / positives)


def _mean_over_all(probabilities: Tensor, labels: Tensor) -> float:
    """Average the classes' average precision over all scores [N, C]; classes without positives do not count."""
    precisions = []
    for scores, hits in zip(probabilities.T.numpy(), labels.T.numpy(), strict=True):
        if hits.any():
            precisions.append(_pooled_precision(scores, hits, int(hits.sum())))
    return float(np.mean(precisions)) if precisions else 0.0


def _label_counts(labels: Tensor) -> tuple[Integers, Integers]:
    """Return the number of labels of each video [N] and of each class [C]."""
    # Labels are sparse: summing a wide bool tensor takes longer than finding the 20 highest scores.
    videos, classes = np.divmod(np.flatnonzero(labels.cpu().numpy()), labels.shape[1])
    return np.bincount(videos, minlength=len(labels)), np.bincount(classes, minlength=labels.shape[1])


def _precision_at_label_count(
    probabilities: Tensor, labels: Tensor, scores: Tensor, hits: Tensor, labels_per_video: Integers
) -> Floats:
    counts = torch.from_numpy(labels_per_video).to(labels.device)
    if int(counts.max()) > scores.shape[1]:  # more labels than top k
        scores, classes = top_k(probabilities, int(counts.max()))
        hits = labels.gather(1, classes)
    within = torch.arange(scores.shape[1], device=counts.device) < counts[:, None]
    hit_counts = (hits & within & (scores > 0)).sum(1)
    return (hit_counts.double() / counts.clamp_min(1)).cpu().numpy()
