"""The log of a training: one row every few steps, the same however often the training was broken off.

It is kept in the checkpoint, and `log.csv` beside that is written from there: so both always tell of the same steps.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reeltag.core.errors import UsageError
from reeltag.core.storage import write_bytes

LOG = "log.csv"
MOST_ROWS = 400


class Row(NamedTuple):
    """What is told of some steps.

    Attributes:
        step: steps done when it was written.
        epoch: passes through the videos done by then.
        loss: mean over the steps since the row before.
        learning_rate: Adam's, at the last of them.
        holdout_gap: GAP@20 on the hold-out, where it was measured after that step.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    holdout_gap: float | None


@dataclass
class TrainingLog:
    """The rows of a training and what its open row has so far.

    Attributes:
        rows: written so far.
        total: sum of the losses since the last row.
        count: how many these are.
    """

    rows: list[Row] = field(default_factory=list)
    total: float = 0.0
    count: int = 0

    def add(
        self, step: int, epoch: float, loss: float, learning_rate: float, every: int, gap: float | None, ends: bool
    ) -> None:
        """Take note of a step.

        Args:
            step: steps done with it.
            epoch: passes through the videos done with it.
            loss: of its batch.
            learning_rate: Adam's.
            every: steps a row.
            gap: on the hold-out, where it was measured now.
            ends: whether it is the last one.
        """
        self.total += loss
        self.count += 1
        if self.count == every or gap is not None or ends:
            self.rows.append(Row(step, epoch, self.total / self.count, learning_rate, gap))
            self.total, self.count = 0.0, 0

    def dump(self) -> dict[str, Any]:
        """As JSON, exactly."""
        return {"rows": [list(row) for row in self.rows], "total": self.total, "count": self.count}

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> TrainingLog:
        """What `dump` gave; of nothing, an empty log."""
        return cls([Row(*row) for row in content["rows"]], content["total"], content["count"]) if content else cls()

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        lines = [",".join(Row._fields), *(",".join(map(_cell, row)) for row in self.rows)]
        write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_rows(path: Path) -> list[Row]:
    """The rows of a `log.csv`.

    Raises:
        UsageError: it is none.
    """
    try:
        with path.open(newline="") as file:
            return [
                Row(
                    int(row["step"]), float(row["epoch"]), float(row["loss"]), float(row["learning_rate"]), _number(row)
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: is no log of a training ({error})") from error


def _number(row: Mapping[str, str]) -> float | None:
    return float(row["holdout_gap"]) if row["holdout_gap"] else None


def steps_a_row(steps: int) -> int:
    """How many steps a row tells of, such that a training has 200 to 400 rows, or one a step where it is short."""
    return -(-steps // MOST_ROWS)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
