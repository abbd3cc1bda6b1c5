"""Open a tracker by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.training.trackers.files import CsvFiles, TensorBoard
from reeltag.training.trackers.mlflow_runs import MLflow
from reeltag.training.trackers.tracker import Run, Tracker
from reeltag.training.trackers.weights_and_biases import WeightsAndBiases

TrackerName = Literal["wandb", "mlflow", "tensorboard", "csv"]


def open_tracker(name: TrackerName, run: Run) -> Tracker:
    """Open a tracker.

    Raises:
        UsageError: it is not installed, or cannot be imported.
    """
    openers: dict[str, Callable[[Run], Tracker]] = {
        "wandb": WeightsAndBiases,
        "mlflow": MLflow,
        "tensorboard": lambda run: TensorBoard(run.folder / "logs" / "tensorboard"),
        "csv": CsvFiles,
    }
    try:
        return openers[name](run)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        what = f"needs {error.name}, which is not installed" if missing else f"cannot be imported ({error})"
        how = f"{install_command(name)}, or leave --log out: logs/*.csv are written anyway"
        raise UsageError(f"--log {name}: {what}; {how}") from error
