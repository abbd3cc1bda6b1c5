"""The training loop: short, exact to resume, and stopped by the first bad number.

What a step does is a function of the weights, Adam's moments, the seed and the step's number, so a
checkpoint holds just these and a run that was killed ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reeltag.core.distributed import process_group
from reeltag.core.distributed.collectives import drawn, whole_mean, whole_rows
from reeltag.core.distributed.process_group import agreed, gathered, rank, world_size
from reeltag.core.errors import TrainingError
from reeltag.core.interrupts import hold_signals
from reeltag.core.progress import Progress
from reeltag.data.loader import Batch, count_sampled_frames, sample_frames, select_frames, training_batches
from reeltag.data.shards import Indices, Shards
from reeltag.models.frames import frame_mask
from reeltag.models.layers import dequantize
from reeltag.models.tagger import Tagger
from reeltag.training import checkpoint
from reeltag.training.checkpoint import TrainingState
from reeltag.training.early_stopping import Course, Watch
from reeltag.training.log import LOG, TrainingLog
from reeltag.training.losses import cross_entropy, distillation_targets
from reeltag.training.schedule import Phase, TrainingSettings
from reeltag.training.weight_averaging import WeightAverage, averaged_tensors

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Save when this long passed, and at most a twentieth of the time goes into saving.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.05
ADAM_EPSILON, ADAM_BETA2 = 1e-8, 0.999


@dataclass(frozen=True)
class Teacher:
    """What a student learns beside its labels.

    Attributes:
        targets: [B, C] probabilities of videos by their indices.
        label_weight: λ, the share of the labels in the loss.
    """

    targets: Callable[[Indices], Tensor]
    label_weight: float


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
    watch: Watch | None = None,
    progress: Progress,
    name: str = "train",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingState:
    """Train through a phase, from the checkpoint at `path` if there is one.

    Processes that share the training each call this with the same arguments and come to the same state. The first one
    writes the checkpoint and its log, and shows progress.

    Args:
        tagger: the model; its weights change.
        shards: where the videos are.
        indices: which of them train.
        phase: steps, rate and averaging.
        settings: everything else.
        seed: of order, frames and dropout.
        path: the checkpoint, written now and then and at the end; beside it then comes the log, `log.csv`.
        start: state to begin from where there is no checkpoint.
        teacher: of a student.
        window: shards that are mixed at a time; None mixes all.
        watch: measures on the hold-out, and may end the phase early; not by default.
        progress: told of each step.
        name: for the progress.
        checkpoint_seconds: least time between two checkpoints.

    Returns:
        The state after the last step; also at `path`.

    Raises:
        TrainingError: a number is not finite, and nothing of that step is kept; or the processes cannot share it.
        DataError: a record is damaged.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step was finished and saved first.
    """
    fabric = _fabric(settings)
    optimizer = torch.optim.Adam(tagger.parameters(), betas=(0.9, ADAM_BETA2), fused=True)
    model, fabric_optimizer = fabric.setup(tagger, optimizer)
    before = checkpoint.load(path) if path.exists() else None
    log, best = (TrainingLog.load(before.log), before.best) if before else (TrainingLog(), {})
    course, state = Course(phase.steps, watch, log, best), before or start
    if state is not None:
        checkpoint.restore(state, tagger, optimizer)
    average = _average(tagger, phase, state)
    step = state.step if state else phase.steps.start
    if len(set(gathered(step))) > 1:
        raise TrainingError(f"{path}: not all processes see the same checkpoint; give them a folder that all share")
    if rank() == 0:
        course.log.write(path.with_name(LOG))  # a kill may have come between the two
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
    progress = progress if rank() == 0 else Progress()
    label_weight = teacher.label_weight if teacher else 1.0
    # The global generator drives dropout; it is seeded anew at every step and given back at the end.
    with (
        torch.random.fork_rng(),
        progress.task(name, len(phase.steps) * settings.batch_size, "videos") as task,
        hold_signals() as interrupt,
    ):
        task.resume_at((step - phase.steps.start) * settings.batch_size)
        for step in steps:
            begin = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begin
            optimizer.param_groups[0].update(lr=phase.learning_rate(step), eps=adam_epsilon(step))
            try:
                loss = train_step(fabric, model, fabric_optimizer, batch, settings, step_seed(seed, step), label_weight)
                if average is not None:
                    average.update(averaged_tensors(tagger))
                epoch = (step + 1) * settings.batch_size / len(indices)
                ends = course.took(step, epoch, loss, phase.learning_rate(step), partial(_left, tagger, average))
                task.advance(settings.batch_size, waited=waited, note=course.note)
                # All save at the same step: where a signal came to one of them, or by the first one's clock.
                came, due = agreed(interrupt.number, rank() == 0 and pace.due())
                if due or ends or came:
                    state = checkpoint.capture(step + 1, tagger, optimizer, average, course.best, course.log.dump())
                    state = _ended(state, phase) if ends else state
                    _refuse_not_finite(state)
                    if rank() == 0:
                        checkpoint.save(path, state)
                        course.log.write(path.with_name(LOG))
                    agreed(step)  # none goes on, or ends, before it is written
                    pace.saved()
                    if came:
                        interrupt.release(came)
                if ends:
                    break
            except FloatingPointError as error:
                ids = [each for part in gathered(batch.ids) for each in part]
                raise _stopped(error, step, ids, len(indices)) from error
    assert state is not None  # a phase has a step, which is done now or was before
    return state


def train_step(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    batch: Batch,
    settings: TrainingSettings,
    seed: int,
    label_weight: float = 1.0,
) -> float:
    """One step of Adam; returns the loss of the whole batch.

    Raises:
        FloatingPointError: the loss, the gradient or a statistic of batch norm is not finite; no weight was changed.
    """
    generator = torch.manual_seed(seed)
    batch = batch.to(fabric.device)
    targets = _targets(batch, label_weight)
    # A single frame has only itself to draw.
    if settings.frames != "all" and not model.pooling.ordered and batch.frames.shape[1] > 1:
        rows = sample_frames(batch.lengths, settings.frames, generator)
        batch = select_frames(batch, rows) if settings.mixup else count_sampled_frames(batch, rows)
    if settings.mixup:
        batch, targets = mix_videos(batch, targets, settings.mixup, seed)
    probabilities = model(batch.frames, batch.lengths, batch.counts)
    loss = cross_entropy(probabilities, targets, batch.rated) + model.penalty()
    optimizer.zero_grad()
    fabric.backward(loss)
    length = clip_gradients(model, settings.clip, settings.clip_norm)
    value = _finite(whole_mean(loss.detach()), length, model.module)
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


def _targets(batch: Batch, label_weight: float) -> Tensor:
    """What the loss compares with: the labels, or labels and a teacher's probabilities mixed."""
    if batch.labels is None:
        raise TrainingError(f"videos without labels cannot train, such as {batch.ids[0]!r} or one beside it")
    if batch.targets is None:
        return batch.labels.float()
    return distillation_targets(batch.labels, batch.targets, label_weight)


def mix_videos(batch: Batch, targets: Tensor, alpha: float, seed: int) -> tuple[Batch, Tensor]:
    """Mix each video with another of the whole batch, by a share drawn from Beta(alpha, alpha) for all.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". Of two videos the longer one gives the length.

    Returns:
        The batch with mixed frames, and mixed targets.
    """
    rng = np.random.default_rng([seed, 0x313])
    drawn_share = rng.beta(alpha, alpha)
    share = max(drawn_share, 1 - drawn_share)
    others = drawn(lambda videos: torch.from_numpy(rng.permutation(videos)), len(batch)).to(batch.lengths.device)
    other_frames, other_lengths, other_targets = (
        whole_rows(each)[others] for each in (batch.frames, batch.lengths, targets)
    )
    frames = torch.lerp(_values(other_frames, other_lengths), _values(batch.frames, batch.lengths), share)
    mixed = replace(batch, frames=frames, lengths=torch.maximum(batch.lengths, other_lengths))
    return mixed, torch.lerp(other_targets, targets, share)


def _values(frames: Tensor, lengths: Tensor) -> Tensor:
    """Frames as float32, 0 past a video's length."""
    values = dequantize(frames) if frames.dtype == torch.uint8 else frames
    return values * frame_mask(lengths, frames.shape[1])[..., None]


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


def _fabric(settings: TrainingSettings) -> Fabric:
    """What trains on one device, or on one of each process that the environment tells of.

    Raises:
        TrainingError: so many processes cannot share a batch, or there is no GPU for each.
    """
    from lightning_fabric import Fabric  # it takes a second, and faults of a recipe should not wait for it
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if world_size() == 1:
        return Fabric(accelerator=settings.device, devices=1, precision=_precision(settings))
    if fault := settings.cannot_share(world_size()):
        raise TrainingError(f"training.{fault}")
    here, gpus = process_group.local_world_size(), torch.cuda.device_count()
    if settings.device != "cpu" and 0 < gpus < here:
        raise TrainingError(f"training.devices: {here} processes and {gpus} GPUs here; each needs one of its own")
    process_group.join()
    fabric = Fabric(
        accelerator="cpu" if settings.device == "auto" and not gpus else settings.device,
        devices=here,
        num_nodes=world_size() // here,
        precision=_precision(settings),
        strategy="ddp",
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


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


def _left(tagger: Tagger, average: WeightAverage | None) -> dict[str, Tensor]:
    """What a phase would leave after this step."""
    return average.shadow if average else tagger.state_dict()


def _ended(state: TrainingState, phase: Phase) -> TrainingState:
    """What a phase leaves: as if all of its steps were done and, where it was watched for them, the best weights."""
    left = {"average" if state.average else "model": state.best} if state.best else {}
    return replace(state, step=phase.steps.stop, best={}, **left)


def _refuse_not_finite(state: TrainingState) -> None:
    """See that what is kept can be gone on from; a rate beyond all reason takes weights out of float32.

    Raises:
        FloatingPointError: a tensor is not finite.
    """
    for part in ("model", "optimizer", "average"):
        for name, tensor in getattr(state, part).items():
            if not tensor.isfinite().all():
                raise FloatingPointError(f"{part}'s {name} is not finite")


def _stopped(error: FloatingPointError, step: int, ids: Sequence[str], videos: int) -> TrainingError:
    epoch = step * len(ids) // videos
    return TrainingError(
        f"{error} at step {step} (epoch {epoch}), and nothing of that step is kept; lower "
        f"training.learning_rate, or check the videos of its batch: {', '.join(ids)}"
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
