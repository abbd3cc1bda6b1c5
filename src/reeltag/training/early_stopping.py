"""A training on its way: its log, its GAP on the hold-out, and an end where that no longer rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from reeltag.core.distributed.process_group import broadcast, rank
from reeltag.training.log import TrainingLog, steps_a_row

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Watch:
    """How a phase is watched.

    Attributes:
        gap: GAP@20 on the hold-out of weights that the phase may leave.
        every: steps between two measurements; after the last step comes one too.
        patience: measurements without a new best after which the phase ends and leaves the best weights; None: it goes
            through to its end and leaves the last.
    """

    gap: Callable[[Weights], float]
    every: int
    patience: int | None = None


class Course:
    """What a phase did so far; processes that share it each have one and come to the same.

    Args:
        steps: of the whole phase.
        watch: how it is watched, or None.
        log: of the steps before.
        best: weights that were best before.

    Attributes:
        log: of all steps.
        best: the weights that were best so far, where there is patience; else empty.
        note: about the last step, for people.
    """

    def __init__(self, steps: range, watch: Watch | None, log: TrainingLog, best: dict[str, Tensor]) -> None:
        self.steps, self.watch, self.log, self.best, self.note = steps, watch, log, best, ""
        self._row = steps_a_row(len(steps))

    def took(self, step: int, epoch: float, loss: float, learning_rate: float, weights: Callable[[], Weights]) -> bool:
        """Take note of a step, and say whether the phase ends with it.

        Args:
            step: its number.
            epoch: passes through the videos done with it.
            loss: of its batch.
            learning_rate: Adam's.
            weights: what the phase would leave.
        """
        ends, gap, watch = step == self.steps[-1], None, self.watch
        if watch is not None and (ends or (step + 1 - self.steps.start) % watch.every == 0):
            now = weights()
            gap = broadcast(watch.gap(now) if rank() == 0 else 0.0)
        self.log.add(step + 1, epoch, loss, learning_rate, self._row, gap, ends)
        self.note = f"loss {loss:.3f}" + (f", hold-out GAP {gap:.5f}" if gap is not None else "")
        if watch is None or gap is None or watch.patience is None:
            return ends
        if not (misses := self._measured_since_best()):
            self.best = {name: tensor.detach().clone() for name, tensor in now.items()}
        if misses == watch.patience:
            self.note += f", the best was {misses} measurements ago, so it ends"
        return ends or misses == watch.patience

    def _measured_since_best(self) -> int:
        """How often was measured after the best; of equal ones the first is the best."""
        gaps = [row.holdout_gap for row in self.log.rows if row.holdout_gap is not None]
        return len(gaps) - 1 - gaps.index(max(gaps))
