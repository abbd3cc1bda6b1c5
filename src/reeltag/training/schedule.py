"""Settings of trainings, and the phases of steps and learning rates that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from reeltag.core.validation import count_or
from reeltag.models.config import Part

# Settings that change the device and the speed of a training, but not its result, up to rounding. With precision "auto"
# the device decides the precision; a run that moves to another device still keeps its finished trainings.
NOT_DECISIVE = {"device", "devices", "nodes", "workers"}
# What of `start` says only where the weights lie; their content decides.
_PLACE = {"file", "member"}

FORGOTTEN = 0.05  # largest weight that batch norm's initial statistics may still have after a training


def _is_none(value: object) -> bool:
    return value is None


def _is_model(value: object) -> bool:
    return value == "model"


class StartSettings(BaseModel):
    """Finished model that a training goes on from; in a recipe its path, or a table."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str = Field(description="a .reeltag file or its URL, or the folder of a run")
    member: str | None = Field(
        None, description="name of a model in the file; by default the only one, or the one of the same name"
    )
    frozen: tuple[Part, ...] = Field((), description="parts whose weights and statistics stay as they are in the file")
    learning_rate_divisor: float = Field(
        1.0, gt=0, description="divides the learning rate of the parts before the head"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        table = handler.resolve_ref_schema(handler(core))
        return {**table, "type": ["string", "object"]}


class TrainingSettings(BaseModel):
    """Settings of a training; the defaults are the paper's (section 4.1 and the published configuration)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(128, gt=1, description="of all processes together")
    epochs: float = Field(5.0, gt=0)
    frames: Annotated[Annotated[int, Field(gt=0)] | Literal["all"], count_or("all")] = Field(
        300, description="number of frames sampled from each video with replacement, or all"
    )
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, before the schedule")
    schedule: Literal["staircase", "cosine"] = "staircase"
    learning_rate_decay: float = Field(0.8, gt=0, le=1, description="staircase: factor of each stair")
    learning_rate_decay_examples: int = Field(4_000_000, gt=0, description="staircase: examples of each stair")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="cosine: fraction of the steps that warm up")
    clip: Literal["tensor", "global", "none"] = Field(
        "tensor", description="clip the norm of each gradient tensor, or of all together"
    )
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, gt=0, description="number of processes on each machine; one for each GPU")
    nodes: int = Field(1, gt=0, description="number of machines")
    workers: int = Field(0, ge=0, description="number of loader processes of each training process")
    mixup: float = Field(
        0.0,
        ge=0,
        description="a of Beta(a, a), from which the weights of mixed pairs of videos are sampled; 0: no mixup",
    )
    # Not part of hashes unless set, so that trainings that are older than these keys stay valid.
    evaluate_every: float | None = Field(
        None, gt=0, exclude_if=_is_none, description="epochs between two evaluations on the hold-out"
    )
    patience: int | None = Field(
        None,
        gt=0,
        exclude_if=_is_none,
        description="number of evaluations without a new best GAP after which a phase ends",
    )
    start: StartSettings | None = Field(
        None, exclude_if=_is_none, description="finished model that the training goes on from, instead of new weights"
    )

    def decisive(self, *, only_set: bool = False) -> dict[str, Any]:
        """Return the settings that decide the weights, as JSON, beside the content of a file to start from.

        Args:
            only_set: leave out keys that are not set.
        """
        excluded: dict[str, Any] = {**dict.fromkeys(NOT_DECISIVE, True), "start": _PLACE}
        return self.model_dump(mode="json", exclude_unset=only_set, exclude=excluded)

    @property
    def processes(self) -> int:
        """Number of processes that share the training."""
        return self.devices * self.nodes

    def fault(self) -> str:
        """Return a description of a contradiction between settings; empty if there is none."""
        if self.patience is not None and self.evaluate_every is None:
            return (
                f"patience = {self.patience} counts evaluations on the hold-out; give evaluate_every, such as 1.0, too"
            )
        return self.cannot_share(self.processes)

    def cannot_share(self, processes: int) -> str:
        """Return the reason why this number of processes cannot share the training; empty if it can."""
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
    """Settings of the paper's second phase: continue with a lower learning rate and average the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: float = Field(1.0, gt=0)
    time_constant: int = Field(2000, gt=0, description="in steps; d = 1 − 1/time_constant")
    learning_rate_divisor: float = Field(5.0, gt=0)
    # Not part of hashes unless set, so that averagings that are older than this key stay valid.
    decide: Literal["model", "family"] = Field(
        "model",
        exclude_if=_is_model,
        description="keep averaged weights of each model whose hold-out GAP rises, or of each family whose mean rises",
    )


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        steps: indices of the steps; a later phase continues them.
        learning_rate: of Adam at a step.
        time_constant: of the weight average in steps, or None for none.
    """

    steps: range
    learning_rate: Callable[[int], float]
    time_constant: int | None = None


def training_phase(settings: TrainingSettings, videos: int) -> Phase:
    """Return the first phase, over `epochs` passes through `videos` videos."""
    total = _steps(settings.epochs, settings, videos)
    if settings.schedule == "cosine":
        warmup = max(1, round(settings.warmup_ratio * total))
        return Phase(range(total), lambda step: settings.learning_rate * _cosine(step, warmup, total))
    return Phase(range(total), lambda step: settings.learning_rate * _stair(step, settings))


def averaging_phase(settings: TrainingSettings, averaging: AveragingSettings, videos: int) -> Phase:
    """Return the averaging phase; its constant learning rate is the initial one, or the reached stair, divided."""
    first = _steps(settings.epochs, settings, videos)
    stair = _stair(first, settings) if settings.schedule == "staircase" else 1.0
    learning_rate = settings.learning_rate * stair / averaging.learning_rate_divisor
    steps = range(first, first + _steps(averaging.epochs, settings, videos))
    return Phase(steps, lambda step: learning_rate, averaging.time_constant)


def evaluation_steps(settings: TrainingSettings, videos: int) -> int | None:
    """Return the number of steps between two evaluations on the hold-out; None for no evaluation."""
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
