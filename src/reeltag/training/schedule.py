"""How to train: the settings, and the phases of steps and rates that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from reeltag.core.validation import count_or

# Settings that change where and how fast a training runs, but not what comes out, up to rounding. A device does decide
# the precision where that is "auto": a run that moves to another one keeps what it has trained.
NOT_DECISIVE = {"device", "devices", "nodes", "workers"}

FORGOTTEN = 0.05  # share of batch norm's first statistics that a training may end with


def _is_none(value: object) -> bool:
    return value is None


class TrainingSettings(BaseModel):
    """How to train; the defaults are the paper's (section 4.1 and the published configuration)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(128, gt=1, description="of all processes together")
    epochs: float = Field(5.0, gt=0)
    frames: Annotated[Annotated[int, Field(gt=0)] | Literal["all"], count_or("all")] = Field(
        300, description="drawn a video with replacement, or all real ones"
    )
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, before the schedule")
    schedule: Literal["staircase", "cosine"] = "staircase"
    learning_rate_decay: float = Field(0.8, gt=0, le=1, description="staircase: factor a stair")
    learning_rate_decay_examples: int = Field(4_000_000, gt=0, description="staircase: examples a stair")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="cosine: share of the steps that warm up")
    clip: Literal["tensor", "global", "none"] = Field("tensor", description="each gradient tensor, or all as one")
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, gt=0, description="processes on each machine, one a GPU")
    nodes: int = Field(1, gt=0, description="machines")
    workers: int = Field(0, ge=0, description="loader processes beside each process of the training")
    mixup: float = Field(0.0, ge=0, description="a of the Beta(a, a) by which pairs of videos are mixed; 0 for none")
    # Left out of hashes where they are not given, so that trainings from before there were such keys stay.
    evaluate_every: float | None = Field(
        None, gt=0, exclude_if=_is_none, description="epochs between two measurements of hold-out GAP"
    )
    patience: int | None = Field(
        None, gt=0, exclude_if=_is_none, description="measurements without a new best until a phase ends"
    )

    @property
    def processes(self) -> int:
        """How many share a training."""
        return self.devices * self.nodes

    def fault(self) -> str:
        """What these settings contradict each other in; empty where they do not."""
        if self.patience is not None and self.evaluate_every is None:
            return (
                f"patience = {self.patience} counts measurements on the hold-out; give evaluate_every, such as 1.0, too"
            )
        return self.cannot_share(self.processes)

    def cannot_share(self, processes: int) -> str:
        """What keeps so many processes from sharing a training; empty where nothing does."""
        if self.batch_size % processes:
            near = max(1, self.batch_size // processes) * processes
            return (
                f"batch_size = {self.batch_size} is the batch of all processes, and cannot be divided among the "
                f"{processes} of training.devices and training.nodes; choose a multiple of {processes}, such as {near}"
            )
        if processes > 1 and self.device == "mps":
            return f"device = 'mps' is one device, and there are {processes} processes; choose 'cpu', or devices = 1"
        return ""


class AveragingSettings(BaseModel):
    """The second step of the paper's training: go on with a lower rate and average the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: float = Field(1.0, gt=0)
    time_constant: int = Field(2000, gt=0, description="in steps; d = 1 − 1/time_constant")
    learning_rate_divisor: float = Field(5.0, gt=0)


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        steps: numbers of its steps; a later phase goes on counting.
        learning_rate: of Adam at a step.
        time_constant: of the weight average in steps, or None for none.
    """

    steps: range
    learning_rate: Callable[[int], float]
    time_constant: int | None = None


def training_phase(settings: TrainingSettings, videos: int) -> Phase:
    """The first phase, over `epochs` passes through `videos` videos."""
    total = _steps(settings.epochs, settings, videos)
    if settings.schedule == "cosine":
        warmup = max(1, round(settings.warmup_ratio * total))
        return Phase(range(total), lambda step: settings.learning_rate * _cosine(step, warmup, total))
    return Phase(range(total), lambda step: settings.learning_rate * _stair(step, settings))


def averaging_phase(settings: TrainingSettings, averaging: AveragingSettings, videos: int) -> Phase:
    """The second phase: the base rate, or the stair that was reached, divided; constant."""
    first = _steps(settings.epochs, settings, videos)
    stair = _stair(first, settings) if settings.schedule == "staircase" else 1.0
    rate = settings.learning_rate * stair / averaging.learning_rate_divisor
    steps = range(first, first + _steps(averaging.epochs, settings, videos))
    return Phase(steps, lambda step: rate, averaging.time_constant)


def evaluation_steps(settings: TrainingSettings, videos: int) -> int | None:
    """Steps between two measurements on the hold-out; None for no measurement."""
    return (
        None
        if settings.evaluate_every is None
        else max(1, round(settings.evaluate_every * videos / settings.batch_size))
    )


def _steps(epochs: float, settings: TrainingSettings, videos: int) -> int:
    return math.ceil(epochs * videos / settings.batch_size)


def _stair(step: int, settings: TrainingSettings) -> float:
    return float(settings.learning_rate_decay ** (step * settings.batch_size // settings.learning_rate_decay_examples))


def _cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
