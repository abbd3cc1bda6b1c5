"""What a tracker of experiments does: it gets the rows of each training's log, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reeltag.core.storage import content_hash
from reeltag.training.log import Row


@dataclass(frozen=True)
class Run:
    """The run whose trainings are tracked.

    Attributes:
        name: of the recipe.
        folder: of the run.
        settings: the recipe's keys, dotted, and their values.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]

    def identity(self, *parts: str) -> str:
        """Return a name for a part of the run that no other run has."""
        return content_hash([str(self.folder.resolve()), *parts])[:16]


class Tracker(Protocol):
    """Place to which the logs of trainings are sent.

    Attributes:
        place: where rows that were sent stay, so that a later process does not send them again; empty if its rows
            replace them.
    """

    place: str

    def log(self, training: str, rows: Sequence[Row]) -> None:
        """Send the next rows of a training, which is named by its stage's folder, `train.NAME-HASH`."""

    def close(self, *, finished: bool) -> None:
        """End the trainings; `finished` is False if the run was interrupted or failed."""


def stage_name(training: str) -> str:
    """Return the name of the stage whose folder is `NAME-HASH`."""
    return training.rpartition("-")[0]


def measured(row: Row) -> dict[str, float]:
    """Return what a row measured, by name."""
    return {key: value for key, value in row._asdict().items() if key != "step" and value is not None}
