"""Checkpoints: the training state as tensors and JSON in one file, without pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reeltag.core.errors import ArtifactError
from reeltag.core.tensorfile import load_tensors, save_tensors
from reeltag.training.weight_averaging import WeightAverage


@dataclass(frozen=True)
class TrainingState:
    """All that the next step depends on; order and randomness follow from the seed and the step.

    Attributes:
        step: number of steps done.
        model: the model's state dict.
        optimizer: Adam's moments by parameter name: `NAME/exp_avg`, `NAME/exp_avg_sq`.
        average: averaged weights; empty outside the averaging phase.
        best: weights with the best GAP on the hold-out so far; empty without patience.
        log: JSON of the phase's log up to this step; see `TrainingLog`.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)


def capture(
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Adam,
    average: WeightAverage | None,
    *,
    best: dict[str, Tensor],
    log: dict[str, Any],
) -> TrainingState:
    """Return the state after `step` steps; its tensors share memory with the model."""
    moments = {
        f"{name}/{key}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        for key in _MOMENTS
        if parameter in optimizer.state
    }
    return TrainingState(step, model.state_dict(), moments, average.shadow if average else {}, best, log)


def restore(state: TrainingState, model: torch.nn.Module, optimizer: torch.optim.Adam) -> None:
    """Load a state into a model and its optimizer.

    Raises:
        ArtifactError: the state is that of another model.
    """
    try:
        model.load_state_dict(state.model)
    except RuntimeError as error:
        raise ArtifactError(f"the checkpoint belongs to another model: {error}") from error
    for name, parameter in model.named_parameters():
        moments = {key: state.optimizer.get(f"{name}/{key}") for key in _MOMENTS}
        if all(moment is not None for moment in moments.values()):
            # torch's Adam keeps its step as a float tensor; fused Adam expects it on the device of the weights
            step = torch.tensor(float(state.step), device=parameter.device)
            optimizer.state[parameter] = {"step": step} | {
                key: moment.to(parameter.device, copy=True) for key, moment in moments.items() if moment is not None
            }


_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("model", "optimizer", "average", "best")


def save(path: Path, state: TrainingState) -> None:
    """Write a state atomically."""
    tensors = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(state, part).items()}
    save_tensors(path, tensors, {"step": state.step, "log": state.log})


def load(path: Path) -> TrainingState:
    """Read a state from a file.

    Raises:
        ArtifactError: the file is missing, damaged, or was not written by this version of reeltag.
    """
    tensors, header = load_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return TrainingState(
        header["step"], **parts, log=header.get("log", {})
    )  # checkpoints of early versions have no log
