"""Weights & Biases as a tracker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from reeltag.training.log import Row
from reeltag.training.trackers.tracker import Run, measured, stage_name

SECONDS = 15  # for the server to answer


class WeightsAndBiases:
    """A run of Weights & Biases for each training, in one group for the whole run.

    Without an account on this machine they are offline files in `logs/wandb`, which `wandb sync` sends.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    place = "wandb"

    def __init__(self, run: Run) -> None:
        import wandb

        self._wandb, self._run, self._runs = wandb, run, dict[str, Any]()
        self._mode = ""

    def log(self, training: str, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        if training not in self._runs:
            self._runs[training] = self._begin(training)
        for row in rows:
            self._runs[training].log(measured(row), step=row.step)

    def close(self, *, finished: bool) -> None:
        """See `Tracker`."""
        for run in self._runs.values():
            run.finish(exit_code=0 if finished else 1)

    def _begin(self, training: str) -> Any:
        if not self._mode:
            known = os.environ.get("WANDB_MODE")
            self._mode = known or ("online" if self._wandb.login(prompt=False) else "offline")
        folder = self._run.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return self._wandb.init(
            project=self._run.name,
            group=self._run.folder.resolve().name,
            name=stage_name(training),
            id=self._run.identity(training),
            resume="allow",
            mode=self._mode,
            dir=str(folder),
            config=dict(self._run.settings),
            reinit="create_new",
            settings=self._wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, init_timeout=SECONDS
            ),
        )
