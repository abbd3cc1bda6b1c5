"""Checkpoints: the training state as tensors and JSON in one file, without pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reeltag.core.errors import ArtifactError
from reeltag.core.tensorfile import TensorFile, save_tensors
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
    for name, tensor in own.items():
        fill(tensor, state.model, name)
    for name, parameter in model.named_parameters():
        if all(f"{name}/{key}" in state.optimizer for key in _MOMENTS):
            # torch's Adam keeps its step as a float tensor; fused Adam expects it on the device of the weights
            optimizer.state[parameter] = {"step": torch.tensor(float(state.step), device=parameter.device)} | {
                key: fill(torch.empty_like(parameter), state.optimizer, f"{name}/{key}") for key in _MOMENTS
            }


def fill(target: Tensor, part: Mapping[str, Tensor], name: str) -> Tensor:
    """Copy a tensor of a state into another one, straight from the file if the state is in one; return the other.

    Raises:
        ArtifactError: their shapes differ.
    """
    source = part.pages(name) if isinstance(part, _Stored) else part[name]
    if source.shape != target.shape:
        shapes = f"{name} is {list(source.shape)} and should be {list(target.shape)}"
        raise ArtifactError(f"the checkpoint belongs to another model: {shapes}")
    target.copy_(source)
    if isinstance(part, _Stored):
        part.forget(name)
    return target


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
    file = TensorFile(path)
    names: dict[str, list[str]] = {part: [] for part in _PARTS}
    for full in file.names:
        file.read(full)
        file.forget(full)
        part, _, name = full.partition("/")
        names[part].append(name)
    parts = {part: _Stored(file, part, tuple(names[part])) for part in _PARTS}
    # Checkpoints of early versions have no log.
    return TrainingState(file.content["step"], **parts, log=file.content.get("log", {}))


@dataclass(frozen=True)
class _Stored(Mapping[str, Tensor]):
    """One part of a state in a file."""

    file: TensorFile
    part: str
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        tensor = self.pages(name).clone()  # in the file it is not aligned
        self.forget(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def pages(self, name: str) -> Tensor:
        """Return a tensor as pages of the file."""
        return torch.from_numpy(self.file.read(f"{self.part}/{name}"))

    def forget(self, name: str) -> None:
        """Give back the memory of a tensor's pages."""
        self.file.forget(f"{self.part}/{name}")
