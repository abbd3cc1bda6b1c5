"""The log of a training: one row every few steps, equal for a training that was interrupted and one that was not.

The checkpoint holds the log, and `log.csv` is written from it, so both always cover the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reeltag.core.errors import UsageError
from reeltag.core.storage import write_bytes
from reeltag.core.tables import fault, read_table, require_columns

LOG = "log.csv"
MOST_ROWS = 400


class Row(NamedTuple):
    """Row of the log, which covers some steps.

    Attributes:
        step: number of steps done.
        epoch: passes through the videos so far.
        loss: mean loss of the steps since the previous row.
        learning_rate: Adam's learning rate at the last step.
        holdout_gap: GAP@20 on the hold-out after the last step; None if it was not evaluated.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    holdout_gap: float | None


@dataclass
class TrainingLog:
    """Rows of a training, and the sums of the row in progress.

    Attributes:
        rows: finished rows.
        total: sum of the losses since the last row.
        count: number of steps since the last row.
    """

    rows: list[Row] = field(default_factory=list)
    total: float = 0.0
    count: int = 0

    def add(
        self, step: int, epoch: float, loss: float, learning_rate: float, *, every: int, gap: float | None, ends: bool
    ) -> None:
        """Record a step.

        Args:
            step: number of steps done.
            epoch: passes through the videos so far.
            loss: loss of the global batch.
            learning_rate: Adam's learning rate.
            every: number of steps in a row of the log.
            gap: GAP@20 on the hold-out after this step, if it was evaluated.
            ends: True for the last step.
        """
        self.total += loss
        self.count += 1
        if self.count == every or gap is not None or ends:
            self.rows.append(Row(step, epoch, self.total / self.count, learning_rate, gap))
            self.total, self.count = 0.0, 0

    def dump(self) -> dict[str, Any]:
        """Return the log as JSON, without rounding."""
        return {"rows": [list(row) for row in self.rows], "total": self.total, "count": self.count}

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> TrainingLog:
        """Load the output of `dump`; an empty mapping is an empty log."""
        return cls([Row(*row) for row in content["rows"]], content["total"], content["count"]) if content else cls()

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        lines = [",".join(Row._fields), *(",".join(map(_cell, row)) for row in self.rows)]
        write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a `log.csv`.

    Raises:
        UsageError: the file is not the log of a training, or an earlier version wrote it.
    """
    table = read_table(path)
    if table.find("rate") is not None:
        raise UsageError(
            f"{path}: an earlier version of reeltag wrote this log, with a column rate that is called learning_rate "
            "now; rename it in the first line of the file"
        )
    columns = require_columns(table, Row._fields)
    return [_row(path, line, [cells[at] for at in columns]) for line, cells in table]


def _row(path: Path, line: int, cells: Sequence[str]) -> Row:
    step, epoch, loss, learning_rate, gap = cells
    try:
        return Row(int(step), float(epoch), float(loss), float(learning_rate), float(gap) if gap else None)
    except ValueError as error:
        raise fault(path, line, f"is not a row of a training's log ({error})") from error


def steps_a_row(steps: int) -> int:
    """Return the number of steps in a row: 1 for up to 400 steps, else so many that a training has 200 to 400 rows."""
    return -(-steps // MOST_ROWS)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
