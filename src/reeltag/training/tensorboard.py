"""The logs of a run's trainings as event files for TensorBoard, also while they are still trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reeltag.core.errors import UsageError
from reeltag.core.storage import remove_folder
from reeltag.training.log import LOG, read_rows

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            what = f"event files need {error.name}, which is not installed"
            raise UsageError(f"{what}; pip install 'reeltag[tensorboard]'") from error
        self.run, self.folder = run, run / "logs" / "tensorboard"
        if self.folder.exists():
            remove_folder(self.folder)
        self._open = SummaryWriter
        self._writers: dict[str, SummaryWriter] = {}
        self._written: dict[str, int] = {}

    def update(self) -> int:
        """Write the rows that the logs have beyond those written before; returns how many they were."""
        count = 0
        for log in sorted(self.run.glob(f"stages/*/{LOG}")):
            name = log.parent.name
            rows = read_rows(log)[self._written.get(name, 0) :]
            writer = self._writers.get(name) or self._open(str(self.folder / name))
            self._writers[name], self._written[name] = writer, self._written.get(name, 0) + len(rows)
            for row in rows:
                for tag, value in row._asdict().items():
                    if tag != "step" and value is not None:
                        writer.add_scalar(tag, value, row.step)
            writer.flush()
            count += len(rows)
        return count
