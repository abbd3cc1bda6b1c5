"""Trackers that are files in the run's folder: CSV, and event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reeltag.core.storage import remove_folder
from reeltag.training.log import Row, TrainingLog
from reeltag.training.trackers.tracker import Run, measured, stage_name


class CsvFiles:
    """Keeps `logs/STAGE.csv` of the run up to date, which otherwise is written at the end."""

    place = ""

    def __init__(self, run: Run) -> None:
        self._folder, self._logs = run.folder / "logs", dict[str, TrainingLog]()

    def log(self, training: str, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        log = self._logs.setdefault(training, TrainingLog())
        log.rows += rows
        log.write(self._folder / f"{stage_name(training)}.csv")

    def close(self, *, finished: bool) -> None:
        """See `Tracker`."""


class TensorBoard:
    """Event files, a folder for each training; those of before are replaced.

    Args:
        folder: of the event files.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    place = ""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if folder.exists():
            remove_folder(folder)
        self._folder, self._open, self._writers = folder, SummaryWriter, dict[str, Any]()

    def log(self, training: str, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        writer = self._writers.get(training) or self._open(str(self._folder / training))
        self._writers[training] = writer
        for row in rows:
            for key, value in measured(row).items():
                writer.add_scalar(key, value, row.step)
        writer.flush()

    def close(self, *, finished: bool) -> None:
        """See `Tracker`."""
        for writer in self._writers.values():
            writer.close()
