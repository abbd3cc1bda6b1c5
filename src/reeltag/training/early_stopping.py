"""Evaluation on the hold-out during a training, early stopping once GAP no longer rises, and giving a training up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from reeltag.core.distributed.process_group import broadcast, rank
from reeltag.core.errors import TrainingStoppedError
from reeltag.training.log import TrainingLog, steps_a_row

Weights = Mapping[str, Tensor]
# Function from the GAPs of all evaluations so far to True if the training is to be given up.
StopRule = Callable[[Sequence[float]], bool]


@dataclass(frozen=True)
class HoldoutEvaluation:
    """Evaluation on the hold-out during a phase.

    Attributes:
        gap: function from weights that the phase may end with to their GAP@20 on the hold-out.
        every: steps between two evaluations; the last step is evaluated too.
        patience: number of evaluations without a new best after which the phase ends with its best weights; None to go
            through all steps and end with the last weights.
        stop: decides after each evaluation but the last if the training is given up; None for never.
    """

    gap: Callable[[Weights], float]
    every: int
    patience: int | None = None
    stop: StopRule | None = None


class TrainingMonitor:
    """Record of a phase so far: log, best weights, and the decision to stop. All ranks keep equal records.

    Args:
        steps: all steps of the phase.
        evaluation: evaluation on the hold-out, or None.
        log: log of the steps before.
        best: best weights of the steps before.

    Attributes:
        log: log of all steps.
        best: the best weights so far if there is patience, else empty.
        note: remark on the last step, for people.
    """

    def __init__(
        self, steps: range, evaluation: HoldoutEvaluation | None, log: TrainingLog, best: dict[str, Tensor]
    ) -> None:
        self.steps, self.evaluation, self.log, self.best, self.note = steps, evaluation, log, best, ""
        self._every = steps_a_row(len(steps))

    def record(
        self, step: int, epoch: float, loss: float, learning_rate: float, weights: Callable[[], Weights]
    ) -> bool:
        """Record a step, and evaluate if it is time to.

        Args:
            step: number of the step.
            epoch: passes through the videos after this step.
            loss: loss of the global batch.
            learning_rate: Adam's learning rate.
            weights: returns the weights that the phase would end with.

        Returns:
            True if the phase ends with this step.

        Raises:
            TrainingStoppedError: the training is given up.
        """
        ends, gap, evaluation = step == self.steps[-1], None, self.evaluation
        if evaluation is not None and (ends or (step + 1 - self.steps.start) % evaluation.every == 0):
            current = weights()
            gap = broadcast(evaluation.gap(current) if rank() == 0 else 0.0)
        self.log.add(step + 1, epoch, loss, learning_rate, every=self._every, gap=gap, ends=ends)
        self.note = f"loss {loss:.3f}" + (f", hold-out GAP {gap:.5f}" if gap is not None else "")
        if evaluation is None or gap is None:
            return ends
        stops = evaluation.stop is not None and broadcast(rank() == 0 and evaluation.stop(self._gaps()))
        if stops and not ends:
            raise TrainingStoppedError(f"given up after {step + 1:,} steps, with a hold-out GAP of {gap:.5f}")
        if evaluation.patience is None:
            return ends
        if not (misses := self._evaluations_since_best()):
            self.best = {name: tensor.detach().clone() for name, tensor in current.items()}
        if misses == evaluation.patience:
            self.note += f", the best was {misses} evaluations ago, so training ends"
        return ends or misses == evaluation.patience

    def _evaluations_since_best(self) -> int:
        """Return the number of evaluations after the best one; of equal ones the first is the best."""
        gaps = self._gaps()
        return len(gaps) - 1 - gaps.index(max(gaps))

    def _gaps(self) -> list[float]:
        """Return the GAP of each evaluation so far."""
        return [row.holdout_gap for row in self.log.rows if row.holdout_gap is not None]
