"""The training loop: short, exact to resume, and stopped by the first bad number.

What a step does is a function of the weights, Adam's moments, the seed and the step's number, so a
checkpoint holds just these and a run that was killed ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltag import checkpoint
from reeltag.averaging import WeightAverage, averaged_tensors
from reeltag.checkpoint import TrainingState
from reeltag.data.batches import Batch, count_frames, draw_frames, take_frames, training_batches
from reeltag.data.shards import Indices, Shards
from reeltag.errors import TrainingError
from reeltag.interrupts import held
from reeltag.losses import cross_entropy, distillation_targets
from reeltag.models.frames import frame_mask
from reeltag.models.layers import dequantize
from reeltag.models.tagger import Tagger
from reeltag.progress import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Save when this long passed, and at most a twentieth of the time goes into saving.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.05
ADAM_EPSILON, ADAM_BETA2 = 1e-8, 0.999


# Settings that change where and how fast a training runs, but not what comes out. A device does decide the precision
# where that is "auto": a run that moves to another one keeps what it has trained.
NOT_DECISIVE = {"device", "workers"}


class TrainingSettings(BaseModel):
    """How to train; the defaults are the paper's (section 4.1 and the published configuration)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(128, gt=1)
    epochs: float = Field(5.0, gt=0)
    frames: Annotated[int, Field(gt=0)] | Literal["all"] = Field(
        300, description="drawn a video with replacement, or all real ones"
    )
    rate: float = Field(2e-4, gt=0, description="Adam's base rate")
    schedule: Literal["staircase", "cosine"] = "staircase"
    decay: float = Field(0.8, gt=0, le=1, description="staircase: factor a stair")
    decay_examples: int = Field(4_000_000, gt=0, description="staircase: examples a stair")
    warmup: float = Field(0.05, ge=0, lt=1, description="cosine: share of the steps that warm up")
    clip: Literal["tensor", "global", "none"] = Field("tensor", description="each gradient tensor, or all as one")
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int = Field(0, ge=0, description="loader processes beside the training")
    mixup: float = Field(0.0, ge=0, description="a of the Beta(a, a) by which pairs of videos are mixed; 0 for none")


class AveragingSettings(BaseModel):
    """The second step of the paper's training: go on with a lower rate and average the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: float = Field(1.0, gt=0)
    time_constant: int = Field(2000, gt=0, description="in steps; d = 1 − 1/time_constant")
    rate_divisor: float = Field(5.0, gt=0)


@dataclass(frozen=True)
class Teacher:
    """What a student learns beside its labels.

    Attributes:
        targets: [B, C] probabilities of videos by their indices.
        label_share: λ, the share of the labels in the loss.
    """

    targets: Callable[[Indices], Tensor]
    label_share: float


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        steps: numbers of its steps; a later phase goes on counting.
        rate: Adam's rate at a step.
        time_constant: of the weight average in steps, or None for none.
    """

    steps: range
    rate: Callable[[int], float]
    time_constant: int | None = None


def training_phase(settings: TrainingSettings, videos: int) -> Phase:
    """The first phase, over `epochs` passes through `videos` videos."""
    total = _steps(settings.epochs, settings, videos)
    if settings.schedule == "cosine":
        warmup = max(1, round(settings.warmup * total))
        return Phase(range(total), lambda step: settings.rate * _cosine(step, warmup, total))
    return Phase(range(total), lambda step: settings.rate * _stair(step, settings))


def averaging_phase(settings: TrainingSettings, averaging: AveragingSettings, videos: int) -> Phase:
    """The second phase: the base rate, or the stair that was reached, divided; constant."""
    first = _steps(settings.epochs, settings, videos)
    stair = _stair(first, settings) if settings.schedule == "staircase" else 1.0
    rate = settings.rate * stair / averaging.rate_divisor
    steps = range(first, first + _steps(averaging.epochs, settings, videos))
    return Phase(steps, lambda step: rate, averaging.time_constant)


def _steps(epochs: float, settings: TrainingSettings, videos: int) -> int:
    return math.ceil(epochs * videos / settings.batch_size)


def _stair(step: int, settings: TrainingSettings) -> float:
    return float(settings.decay ** (step * settings.batch_size // settings.decay_examples))


def _cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def run_phase(
    tagger: Tagger,
    shards: Shards,
    indices: Indices,
    phase: Phase,
    settings: TrainingSettings,
    *,
    seed: int,
    path: Path,
    start: TrainingState | None = None,
    teacher: Teacher | None = None,
    window: int | None = None,
    progress: Progress,
    name: str = "train",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingState:
    """Train through a phase, from the checkpoint at `path` if there is one.

    Args:
        tagger: the model; its weights change.
        shards: where the videos are.
        indices: which of them train.
        phase: steps, rate and averaging.
        settings: everything else.
        seed: of order, frames and dropout.
        path: the checkpoint, written now and then and at the end.
        start: state to begin from where there is no checkpoint.
        teacher: of a student.
        window: shards that are mixed at a time; None mixes all.
        progress: told of each step.
        name: for the progress.
        checkpoint_seconds: least time between two checkpoints.

    Returns:
        The state after the last step; also at `path`.

    Raises:
        TrainingError: a number is not finite; nothing of that step is kept.
        DataError: a record is damaged.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step was finished and saved first.
    """
    from lightning_fabric import Fabric  # it takes a second, and faults of a recipe should not wait for it

    fabric = Fabric(accelerator=settings.device, devices=1, precision=_precision(settings))
    optimizer = torch.optim.Adam(tagger.parameters(), betas=(0.9, ADAM_BETA2), fused=True)
    model, fabric_optimizer = fabric.setup(tagger, optimizer)
    state = checkpoint.load(path) if path.exists() else start
    if state is not None:
        checkpoint.restore(state, tagger, optimizer)
    average = _average(tagger, phase, state)
    step = state.step if state else phase.steps.start
    steps = range(step, phase.steps.stop)
    batches = training_batches(
        shards,
        indices,
        seed=seed,
        batch_size=settings.batch_size,
        steps=steps,
        window=window,
        targets=teacher.targets if teacher else None,
        workers=settings.workers,
        pin=fabric.device.type == "cuda",
    )
    model.train()
    pace = _Pace(checkpoint_seconds)
    label_share = teacher.label_share if teacher else 1.0
    # The global generator drives dropout; it is seeded anew at every step and given back at the end.
    with (
        torch.random.fork_rng(),
        progress.task(name, len(phase.steps) * settings.batch_size, "videos") as task,
        held() as interrupt,
    ):
        task.resume_at((step - phase.steps.start) * settings.batch_size)
        for step in steps:
            begin = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begin
            optimizer.param_groups[0].update(lr=phase.rate(step), eps=adam_epsilon(step))
            try:
                loss = train_step(fabric, model, fabric_optimizer, batch, settings, step_seed(seed, step), label_share)
                if average is not None:
                    average.update(averaged_tensors(tagger))
                task.advance(len(batch), waited=waited, note=f"loss {loss:.3f}")
                if pace.due() or step == steps[-1] or interrupt.came:
                    state = checkpoint.capture(step + 1, tagger, optimizer, average)
                    _refuse_not_finite(state)
                    checkpoint.save(path, state)
                    pace.saved()
                    interrupt.release()
            except FloatingPointError as error:
                raise _stopped(error, step, batch, len(indices)) from error
    assert state is not None  # a phase has a step, which is done now or was before
    return state


def train_step(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    batch: Batch,
    settings: TrainingSettings,
    seed: int,
    label_share: float = 1.0,
) -> float:
    """One step of Adam; returns the loss.

    Raises:
        FloatingPointError: the loss, the gradient or a statistic of batch norm is not finite; no weight was changed.
    """
    generator = torch.manual_seed(seed)
    batch = batch.to(fabric.device)
    targets = _targets(batch, label_share)
    # A single frame has only itself to draw.
    if settings.frames != "all" and not model.pooling.ordered and batch.frames.shape[1] > 1:
        rows = draw_frames(batch.lengths, settings.frames, generator)
        batch = take_frames(batch, rows) if settings.mixup else count_frames(batch, rows)
    if settings.mixup:
        batch, targets = mix_videos(batch, targets, settings.mixup, seed)
    loss = cross_entropy(model(batch.frames, batch.lengths, batch.counts), targets) + model.penalty()
    optimizer.zero_grad()
    fabric.backward(loss)
    length = clip_gradients(model, settings.clip, settings.clip_norm)
    value = _finite(loss.detach(), length, model.module)
    optimizer.step()
    return value


def _finite(loss: Tensor, length: Tensor, module: nn.Module) -> float:
    """The loss, once it, the gradient's length and the statistics of batch norm, which the step moved, are finite."""
    statistics = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    largest = torch._foreach_norm(list(statistics.values()), math.inf) if statistics else ()
    names = ["the loss", "the gradient's length", *(f"batch norm's {name}" for name in statistics)]
    values: list[float] = torch.stack([loss, length, *largest]).tolist()  # at once: a GPU is waited for a single time
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
    return values[0]


def _targets(batch: Batch, label_share: float) -> Tensor:
    """What the loss compares with: the labels, or labels and a teacher's probabilities mixed."""
    if batch.labels is None:
        raise TrainingError(f"videos without labels cannot train, such as {batch.ids[0]!r} or one beside it")
    if batch.targets is None:
        return batch.labels.float()
    return distillation_targets(batch.labels, batch.targets, label_share)


def mix_videos(batch: Batch, targets: Tensor, alpha: float, seed: int) -> tuple[Batch, Tensor]:
    """Mix each video with another of the batch: frames and targets, by a share drawn from Beta(alpha, alpha) for all.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". Of two videos the longer one gives the length.
    """
    rng = np.random.default_rng([seed, 0x313])
    drawn = rng.beta(alpha, alpha)
    share = max(drawn, 1 - drawn)
    others = torch.from_numpy(rng.permutation(len(batch))).to(batch.lengths.device)
    frames = dequantize(batch.frames) if batch.frames.dtype == torch.uint8 else batch.frames
    frames = frames * frame_mask(batch.lengths, frames.shape[1])[..., None]
    lengths = torch.maximum(batch.lengths, batch.lengths[others])
    mixed = replace(batch, frames=torch.lerp(frames[others], frames, share), lengths=lengths)
    return mixed, torch.lerp(targets[others], targets, share)


def adam_epsilon(step: int) -> float:
    """Adam's ε at a step, such that torch computes what TensorFlow does with 1e-8.

    TensorFlow adds ε to √v before the bias correction, torch after it; on gradients near zero, of
    which a normalised pooling has many, that is not the same.
    """
    return float(ADAM_EPSILON / math.sqrt(1 - ADAM_BETA2 ** (step + 1)))


@torch.no_grad()
def clip_gradients(model: nn.Module, clip: Literal["tensor", "global", "none"], norm: float) -> Tensor:
    """Scale down gradients longer than `norm`: each tensor by itself, as published, or all as one.

    Returns:
        The length that all as one had before; finite only where every gradient and its square is.
    """
    if clip == "global":
        whole: Tensor = nn.utils.clip_grad_norm_(model.parameters(), norm)
    else:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        lengths = torch._foreach_norm(gradients)
        if clip == "tensor":
            torch._foreach_mul_(gradients, [norm / length.clamp_min(norm) for length in lengths])
        whole = torch.linalg.vector_norm(torch.stack(lengths))
    return whole


def step_seed(seed: int, step: int) -> int:
    """Seed of everything random in a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def final_weights(state: TrainingState) -> dict[str, Tensor]:
    """The weights that a finished phase is for: averaged ones where it averages."""
    return state.average or state.model


def _precision(settings: TrainingSettings) -> Literal["32-true", "bf16-mixed"]:
    if settings.precision != "auto":
        return settings.precision
    gpu = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu else "32-true"


def _average(tagger: Tagger, phase: Phase, state: TrainingState | None) -> WeightAverage | None:
    if phase.time_constant is None:
        return None
    average = WeightAverage(averaged_tensors(tagger), phase.time_constant)
    for name, tensor in (state.average if state else {}).items():
        average.shadow[name].copy_(tensor)
    return average


def _refuse_not_finite(state: TrainingState) -> None:
    """See that what is kept can be gone on from; a rate beyond all reason takes weights out of float32.

    Raises:
        FloatingPointError: a tensor is not finite.
    """
    for part in ("model", "optimizer", "average"):
        for name, tensor in getattr(state, part).items():
            if not tensor.isfinite().all():
                raise FloatingPointError(f"{part}'s {name} is not finite")


def _stopped(error: FloatingPointError, step: int, batch: Batch, videos: int) -> TrainingError:
    epoch = step * len(batch) // videos
    return TrainingError(
        f"{error} at step {step} (epoch {epoch}), and nothing of that step is kept; lower training.rate, or check "
        f"the videos of its batch: {', '.join(batch.ids)}"
    )


class _Pace:
    """Says when the next checkpoint is due."""

    def __init__(self, least: float) -> None:
        self.least, self.interval, self.last = least, least, time.perf_counter()
        self._begin = 0.0

    def due(self) -> bool:
        self._begin = time.perf_counter()
        return self._begin - self.last >= self.interval

    def saved(self) -> None:
        self.last = time.perf_counter()
        self.interval = max(self.least, (self.last - self._begin) / CHECKPOINT_SHARE)
