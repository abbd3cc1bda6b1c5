"""Choice of a video's tags from the probabilities of all classes: the most probable, and those above a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reeltag.core.errors import UsageError
from reeltag.inference.metrics.video_metrics import TOP_K, top_k


@dataclass(frozen=True)
class Selection:
    """Tags of a video: at most `top` classes, the most probable first, each with at least its least probability.

    Attributes:
        top: largest number of tags.
        least: of each of C classes, or of all; infinite for a class that is never a tag.
    """

    top: int = TOP_K
    least: tuple[float, ...] | float = 0.0

    def apply(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the tags of B videos.

        Args:
            probabilities: [B, C] float32.

        Returns:
            Probabilities and classes [B, K] of the most probable, and True [B, K] for those that are tags.
        """
        scores, classes = top_k(probabilities, self.top)
        least = torch.as_tensor(self.least, dtype=torch.float32).expand(probabilities.shape[1])
        return scores, classes, scores >= least[classes]

    def tags(self, probabilities: Tensor) -> Iterator[tuple[list[int], list[float]]]:
        """Yield the classes of each of B videos and their probabilities; [B, C] float32."""
        for scores, classes, kept in zip(*self.apply(probabilities), strict=True):
            yield classes[kept].tolist(), scores[kept].tolist()


ALL = Selection()  # the 20 most probable classes


def check_selection(top: int, threshold: float | None, thresholds: bool) -> None:
    """Refuse options of a selection that cannot be meant.

    Args:
        top: largest number of tags.
        threshold: least probability of all classes.
        thresholds: True for the model's own thresholds.

    Raises:
        UsageError: a number is out of its range, or both thresholds are given.
    """
    if top < 1:
        raise UsageError(f"top: {top} is not a valid number of tags; give 1 or more")
    if threshold is not None and thresholds:
        raise UsageError("threshold and thresholds: give one number for all classes, or take those of the model")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"threshold: {threshold:g} is not a probability; give a number from 0 to 1")
