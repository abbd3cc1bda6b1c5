"""What turns probabilities into tags: a threshold for each class, and a calibration. Both are chosen after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.core.errors import UsageError

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Thresholds:
    """Threshold of each of C classes, with what it was chosen by.

    Attributes:
        values: [C] in the model's own probabilities, before any calibration; from this value on a video has the class.
            Infinite where no threshold meets the goal.
        positives: [C] videos with the class, among those that the thresholds were chosen on.
        tagged: [C] of these videos, those with at least the threshold.
        correct: [C] of the tagged, those with the class.
        about: goal, number of videos and where they are from; JSON.
    """

    values: Floats
    positives: Counts
    tagged: Counts
    correct: Counts
    about: Mapping[str, Any] = field(default_factory=dict)

    KEY: ClassVar[str] = "thresholds"

    @property
    def met(self) -> npt.NDArray[np.bool_]:
        """[C], True for the classes that have a threshold."""
        return np.isfinite(self.values)

    def fault(self) -> str:
        """Return what is wrong with the numbers; empty if nothing is."""
        if np.isnan(self.values).any() or (self.values < 0).any():
            return "a threshold is no probability"
        if (self.correct < 0).any() or (self.correct > np.minimum(self.tagged, self.positives)).any():
            return "more videos are correct than tagged or than have the class"
        return ""


@dataclass(frozen=True)
class Calibration:
    """Map of the probabilities p of each of C classes to σ(scale · logit(p) + offset).

    Attributes:
        scale: [C] above 0, so that a class ranks videos as before; with equal scales and offsets all ranks stay.
        offset: [C].
        about: kind, number of videos and where they are from, and log loss before and after; JSON.
    """

    scale: Floats
    offset: Floats
    about: Mapping[str, Any] = field(default_factory=dict)

    KEY: ClassVar[str] = "calibration"

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Return calibrated probabilities, of the shape [..., C] of those given."""
        logits = torch.log(probabilities) - torch.log1p(-probabilities)
        scale, offset = (torch.from_numpy(array).to(probabilities.device) for array in (self.scale, self.offset))
        return torch.sigmoid(scale * logits + offset)

    def fault(self) -> str:
        """Return what is wrong with the numbers; empty if nothing is."""
        if not np.isfinite(self.scale).all() or not np.isfinite(self.offset).all():
            return "a number is not finite"
        return "" if (self.scale > 0).all() else "a scale is not above 0"


class _Ruled(Protocol):
    """Model that may have thresholds and a calibration."""

    @property
    def thresholds(self) -> Thresholds | None: ...
    @property
    def calibration(self) -> Calibration | None: ...


def require_calibration(model: _Ruled) -> Calibration:
    """Return the calibration of a model.

    Raises:
        UsageError: it has none.
    """
    if model.calibration is None:
        raise UsageError(
            "calibrated: the model has no calibration; `reeltag thresholds MODEL SHARDS --calibrate shared --out FILE` "
            "writes a file with one"
        )
    return model.calibration


def class_thresholds(model: _Ruled, *, calibrated: bool = False) -> Floats:
    """Return the thresholds [C] of a model; infinite where none meets the goal.

    Args:
        model: the model.
        calibrated: for its calibrated probabilities.

    Raises:
        UsageError: it has no thresholds, or no calibration.
    """
    if model.thresholds is None:
        raise UsageError(
            "thresholds: the model has none; `reeltag thresholds MODEL SHARDS --precision 0.9 --out FILE` writes a "
            "file with them"
        )
    values = model.thresholds.values
    if not calibrated:
        return values
    mapped: Floats = require_calibration(model)(torch.from_numpy(np.where(model.thresholds.met, values, 1))).numpy()
    return np.where(model.thresholds.met, mapped, values)


def arrays_of(kind: type[Thresholds | Calibration]) -> dict[str, np.dtype[Any]]:
    """Return the names and types of the arrays of thresholds or of a calibration."""
    types = {"Floats": np.dtype(np.float32), "Counts": np.dtype(np.int32)}
    return {each.name: types[str(each.type)] for each in fields(kind) if each.name != "about"}
