"""Evaluation on the hold-out during a training, and early stopping once GAP no longer rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from reeltag.core.distributed.process_group import broadcast, rank
from reeltag.training.log import TrainingLog, steps_a_row

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class HoldoutEvaluation:
    """Evaluation on the hold-out during a phase.

    Attributes:
        gap: function from weights that the phase may end with to their GAP@20 on the hold-out.
        every: steps between two evaluations; the last step is evaluated too.
        patience: number of evaluations without a new best after which the phase ends with its best weights; None to go
            through all steps and end with the last weights.
    """

    gap: Callable[[Weights], float]
    every: int
    patience: int | None = None


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
        """
        ends, gap, evaluation = step == self.steps[-1], None, self.evaluation
        if evaluation is not None and (ends or (step + 1 - self.steps.start) % evaluation.every == 0):
            current = weights()
            gap = broadcast(evaluation.gap(current) if rank() == 0 else 0.0)
        self.log.add(step + 1, epoch, loss, learning_rate, every=self._every, gap=gap, ends=ends)
        self.note = f"loss {loss:.3f}" + (f", hold-out GAP {gap:.5f}" if gap is not None else "")
        if evaluation is None or gap is None or evaluation.patience is None:
            return ends
        if not (misses := self._evaluations_since_best()):
            self.best = {name: tensor.detach().clone() for name, tensor in current.items()}
        if misses == evaluation.patience:
            self.note += f", the best was {misses} evaluations ago, so training ends"
        return ends or misses == evaluation.patience

    def _evaluations_since_best(self) -> int:
        """Return the number of evaluations after the best one; of equal ones the first is the best."""
        gaps = [row.holdout_gap for row in self.log.rows if row.holdout_gap is not None]
        return len(gaps) - 1 - gaps.index(max(gaps))
