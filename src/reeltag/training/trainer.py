"""The training loop: short, exact to resume, and stopped by the first number that is not finite.

A step is a function of the weights, Adam's moments, the seed and the step's number. So a checkpoint holds only these,
and a training that was killed ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reeltag.core.distributed.process_group import all_gather, all_reduce_max, rank
from reeltag.core.environment import return_freed_memory
from reeltag.core.errors import TrainingError
from reeltag.core.interrupts import hold_signals
from reeltag.core.progress import Progress, Task
from reeltag.core.tensorfile import all_finite
from reeltag.data.loader import Batch, training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.shards import Indices, Shards
from reeltag.models.tagger import Tagger
from reeltag.training import checkpoint
from reeltag.training.checkpoint import TrainingState
from reeltag.training.early_stopping import HoldoutEvaluation, TrainingMonitor
from reeltag.training.log import LOG, TrainingLog
from reeltag.training.replica import Replica, step_seed
from reeltag.training.schedule import Phase, TrainingSettings
from reeltag.training.weight_averaging import WeightAverage, averaged_tensors

# The least time between two checkpoints, and the largest share of the time that goes into saving them.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.05


@dataclass(frozen=True)
class Distillation:
    """A teacher's probabilities, which a student learns beside its labels.

    Attributes:
        targets: function from indices of videos [B] to the teacher's probabilities [B, C].
        label_weight: λ, weight of the labels in the loss.
    """

    targets: Callable[[Indices], Tensor]
    label_weight: float


@dataclass(frozen=True)
class TrainingData:
    """The videos of a training.

    Attributes:
        shards: the shards that hold them.
        indices: indices of the videos to train on.
        distillation: a teacher's probabilities; None to learn from labels only.
        shuffle_window: number of shards that are shuffled together; None for all.
    """

    shards: Shards
    indices: Indices
    distillation: Distillation | None = None
    shuffle_window: int | None = None


class Trainer:
    """Trains a tagger through one or more phases.

    Ranks that share a training each create a trainer with the same arguments and reach the same state. Rank 0 writes
    the checkpoint and its log, and reports progress.

    Args:
        tagger: the model; its weights change.
        data: the videos.
        settings: batch, precision, device and all else of the recipe's `[training]`.
        seed: seed of order, sampled frames and dropout.
        evaluation: evaluates on the hold-out during the training, and may end a phase early; None for neither.
        progress: reports each step.
        checkpoint_seconds: least time between two checkpoints.

    Raises:
        TrainingError: the ranks cannot share a batch of this size, or there is no GPU for each of them.
    """

    def __init__(
        self,
        tagger: Tagger,
        data: TrainingData,
        settings: TrainingSettings,
        *,
        seed: int,
        evaluation: HoldoutEvaluation | None = None,
        progress: Progress | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.replica = Replica(tagger, settings)
        self.data, self.settings, self.seed, self.evaluation = data, settings, seed, evaluation
        self.progress = progress if progress and rank() == 0 else Progress()
        self.checkpoint_seconds = checkpoint_seconds

    def fit(
        self, phase: Phase, path: Path, *, start: TrainingState | None = None, name: str = "train"
    ) -> TrainingState:
        """Train through a phase, from the checkpoint at `path` if there is one.

        Args:
            phase: steps, learning rate and weight averaging.
            path: the checkpoint, written from time to time and at the end; its log is `log.csv` in the same folder.
            start: state to begin from if there is no checkpoint.
            name: name of the task in the progress.

        Returns:
            The state after the last step, which is also at `path`.

        Raises:
            TrainingError: a number is not finite, and the step that made it so is discarded; or the ranks do not see
                the same checkpoint.
            DataError: a record is damaged.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the current step was finished and saved first.
        """
        run = self._resumed(phase, path, start)
        return_freed_memory()  # of reading the state
        batches = self._batches(run.remaining)
        with self._task(name, phase, run) as task, hold_signals() as interrupt:
            for step in run.remaining:
                begin = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - begin
                with _not_finite_explained(step, batch, len(self.data.indices)):
                    ends = self._step(run, step, batch)
                    task.advance(self.settings.batch_size, waited=waited, note=run.monitor.note)
                    # All ranks save at the same step: where a signal reached one of them, or rank 0's clock says so.
                    signal, due = all_reduce_max(interrupt.number, rank() == 0 and run.pace.due())
                    if due or ends or signal:
                        run.state = self._save(run, step, ends)
                    if signal:
                        interrupt.release(signal)
                if ends:
                    break
        assert run.state is not None  # a phase has at least one step, which was done now or before
        return run.state

    def _resumed(self, phase: Phase, path: Path, start: TrainingState | None) -> _Run:
        """Restore the checkpoint at `path`, or the start, and return what the phase has to go on from."""
        saved = checkpoint.load(path) if path.exists() else None
        log, best = (TrainingLog.load(saved.log), dict(saved.best)) if saved else (TrainingLog(), {})
        state = saved or start
        if state is not None:
            checkpoint.restore(state, self.replica.tagger, self.replica.optimizer)
        step = state.step if state else phase.steps.start
        if len(set(all_gather(step))) > 1:
            raise TrainingError(f"{path}: not all processes see the same checkpoint; give them a folder that all share")
        if rank() == 0:
            log.write(path.with_name(LOG))  # a kill may have come between the checkpoint and its log
        monitor = TrainingMonitor(phase.steps, self.evaluation, log, best)
        average = _average(self.replica.tagger, phase, state)
        return _Run(phase, path, step, monitor, average, _Pace(self.checkpoint_seconds), state)

    def _batches(self, steps: range) -> Iterator[Batch]:
        distillation = self.data.distillation
        return training_batches(
            self.data.shards,
            self.data.indices,
            shuffle=Shuffle(self.seed, self.data.shuffle_window),
            batch_size=self.settings.batch_size,
            steps=steps,
            targets=distillation.targets if distillation else None,
            workers=self.settings.workers,
            pin=self.replica.device.type == "cuda",
        )

    @contextmanager
    def _task(self, name: str, phase: Phase, run: _Run) -> Iterator[Task]:
        """Open the task of a phase; the global random generator, which each step seeds, is restored at its end."""
        videos = self.settings.batch_size
        with torch.random.fork_rng(), self.progress.task(name, len(phase.steps) * videos, "videos") as task:
            task.resume_at((run.first - phase.steps.start) * videos)
            yield task

    def _step(self, run: _Run, step: int, batch: Batch) -> bool:
        """Take a training step, and record it; return True if the phase ends with it."""
        distillation, learning_rate = self.data.distillation, run.phase.learning_rate(step)
        self.replica.set_learning_rate(learning_rate, step)
        label_weight = distillation.label_weight if distillation else 1.0
        loss = self.replica.train_step(batch, step_seed(self.seed, step), label_weight)
        if run.average is not None:
            run.average.update(averaged_tensors(self.replica.tagger))
        epoch = (step + 1) * self.settings.batch_size / len(self.data.indices)
        return run.monitor.record(step, epoch, loss, learning_rate, lambda: self._weights(run))

    def _weights(self, run: _Run) -> dict[str, Tensor]:
        """Return the weights that the phase would end with after this step."""
        return run.average.shadow if run.average else self.replica.tagger.state_dict()

    def _save(self, run: _Run, step: int, ends: bool) -> TrainingState:
        """Write the checkpoint and its log; no rank goes on before they are written."""
        monitor, tagger, optimizer = run.monitor, self.replica.tagger, self.replica.optimizer
        state = checkpoint.capture(step + 1, tagger, optimizer, run.average, best=monitor.best, log=monitor.log.dump())
        state = _ended(state, run.phase) if ends else state
        _check_finite(state)
        if rank() == 0:
            checkpoint.save(run.path, state)
            monitor.log.write(run.path.with_name(LOG))
        all_reduce_max(step)
        run.pace.saved()
        return state


def final_weights(state: TrainingState) -> Mapping[str, Tensor]:
    """Return the weights of a finished phase: the averaged ones if it averages."""
    return state.average or state.model


@dataclass
class _Run:
    """A phase in progress."""

    phase: Phase
    path: Path
    first: int
    monitor: TrainingMonitor
    average: WeightAverage | None
    pace: _Pace
    state: TrainingState | None

    @property
    def remaining(self) -> range:
        return range(self.first, self.phase.steps.stop)


class _Pace:
    """Decides when the next checkpoint is due."""

    def __init__(self, least: float) -> None:
        self.least, self.interval, self.last = least, least, time.perf_counter()
        self._begin = 0.0

    def due(self) -> bool:
        self._begin = time.perf_counter()
        return self._begin - self.last >= self.interval

    def saved(self) -> None:
        self.last = time.perf_counter()
        self.interval = max(self.least, (self.last - self._begin) / CHECKPOINT_SHARE)


def _average(tagger: Tagger, phase: Phase, state: TrainingState | None) -> WeightAverage | None:
    if phase.time_constant is None:
        return None
    average = WeightAverage(averaged_tensors(tagger), phase.time_constant)
    if state is not None:
        for name in state.average:
            checkpoint.fill(average.shadow[name], state.average, name)
    return average


def _ended(state: TrainingState, phase: Phase) -> TrainingState:
    """Return the final state of a phase, with the best weights if patience tracked them."""
    state = replace(state, step=phase.steps.stop)
    if not state.best:
        return state
    return replace(state, average=state.best, best={}) if state.average else replace(state, model=state.best, best={})


def _check_finite(state: TrainingState) -> None:
    """Check that a state can be resumed from; an extreme learning rate can move weights beyond float32.

    Raises:
        FloatingPointError: a tensor is not finite.
    """
    for part in ("model", "optimizer", "average"):
        for name, tensor in getattr(state, part).items():
            if tensor.is_floating_point() and not all_finite(tensor):
                raise FloatingPointError(f"{part}'s {name} is not finite")


@contextmanager
def _not_finite_explained(step: int, batch: Batch, videos: int) -> Iterator[None]:
    """Turn a FloatingPointError into a TrainingError that names the step and the videos of the global batch."""
    try:
        yield
    except FloatingPointError as error:
        ids: Sequence[str] = [each for part in all_gather(batch.ids) for each in part]
        raise TrainingError(
            f"{error} at step {step} (epoch {step * len(ids) // videos}), and that step is discarded; lower "
            f"training.learning_rate, or check the videos of its batch: {', '.join(ids)}"
        ) from error
