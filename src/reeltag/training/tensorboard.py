"""The logs of a run's trainings as event files for TensorBoard, also while they are still trained."""

from __future__ import annotations

from pathlib import Path

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.training.log import LOG, read_rows
from reeltag.training.trackers.files import TensorBoard


class EventFiles:
    """Event files in `logs/tensorboard` of a run, a folder for each stage that trained; those of before are replaced.

    Args:
        run: the run's folder.

    Raises:
        UsageError: it is none, or TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        if not (run / "stages").is_dir():
            raise UsageError(f"{run}: holds no reeltag run; give the folder that `reeltag run --out` names")
        self.run, self.folder, self._written = run, run / "logs" / "tensorboard", dict[str, int]()
        try:
            self._tracker = TensorBoard(self.folder)
        except ModuleNotFoundError as error:
            what = f"event files need {error.name}, which is not installed"
            raise UsageError(f"{what}; {install_command('tensorboard')}") from error

    def update(self) -> int:
        """Write the rows that the logs have beyond those written before; returns how many they were."""
        count = 0
        for log in sorted(self.run.glob(f"stages/*/{LOG}")):
            name = log.parent.name
            rows = read_rows(log)[self._written.get(name, 0) :]
            self._tracker.log(name, rows)
            self._written[name] = self._written.get(name, 0) + len(rows)
            count += len(rows)
        return count
