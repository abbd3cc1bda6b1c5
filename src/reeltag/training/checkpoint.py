"""Checkpoints: the training state as tensors and JSON in one file, without pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reeltag.core.errors import ArtifactError
from reeltag.core.tensorfile import open_tensors, save_tensors
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
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    best: Mapping[str, Tensor] = field(default_factory=dict)
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


@torch.no_grad()
def restore(state: TrainingState, model: torch.nn.Module, optimizer: torch.optim.Adam) -> None:
    """Load a state into a model and its optimizer.

    Raises:
        ArtifactError: the state is that of another model.
    """
    own = model.state_dict()
    if others := {*own} ^ {*state.model}:
        raise ArtifactError(f"the checkpoint belongs to another model: only one of them has {min(others)}")
    for name, tensor in own.items():  # one after the other, since those of a file are read as they are asked for
        if (saved := state.model[name]).shape != tensor.shape:
            shapes = f"{list(saved.shape)} and should be {list(tensor.shape)}"
            raise ArtifactError(f"the checkpoint belongs to another model: {name} is {shapes}")
        tensor.copy_(saved)
    for name, parameter in model.named_parameters():
        if all(f"{name}/{key}" in state.optimizer for key in _MOMENTS):
            # torch's Adam keeps its step as a float tensor; fused Adam expects it on the device of the weights
            optimizer.state[parameter] = {"step": torch.tensor(float(state.step), device=parameter.device)} | {
                key: torch.empty_like(parameter).copy_(state.optimizer[f"{name}/{key}"]) for key in _MOMENTS
            }


_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("model", "optimizer", "average", "best")


def save(path: Path, state: TrainingState) -> None:
    """Write a state atomically."""
    tensors = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(state, part).items()}
    save_tensors(path, tensors, {"step": state.step, "log": state.log})


def load(path: Path) -> TrainingState:
    """Check a file, and return its state, whose tensors are read each time that they are asked for.

    So a state takes no memory while a model trains that started from it. The file may be replaced or removed meanwhile.

    Raises:
        ArtifactError: the file is missing, damaged, or was not written by this version of reeltag.
    """
    header, names, read = open_tensors(path)
    for name in names:
        read(name)
    parts = {
        part: _Stored([n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")], part, read)
        for part in _PARTS
    }
    return TrainingState(
        header["step"], **parts, log=header.get("log", {})
    )  # checkpoints of early versions have no log


@dataclass(frozen=True)
class _Stored(Mapping[str, Tensor]):
    """One part of a state in a file."""

    names: list[str]
    part: str
    read: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.read(f"{self.part}/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
