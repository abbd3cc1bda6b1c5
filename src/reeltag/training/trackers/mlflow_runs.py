"""MLflow as a tracker."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from reeltag.core.storage import content_hash
from reeltag.training.log import Row
from reeltag.training.trackers.tracker import Run, measured, stage_name

LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # unless they are set
MOST_PARAMETERS, MOST_METRICS = 100, 1000  # of one request
LONGEST_PARAMETER = 6000  # characters that MLflow keeps


class MLflow:
    """A run of MLflow for each training, all below one for the whole run, whose parameters are the recipe's keys.

    They are sent to `MLFLOW_TRACKING_URI`; without it they are kept in the file `logs/mlflow.db`.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
    """

    def __init__(self, run: Run) -> None:
        for key, value in LIMITS.items():
            os.environ.setdefault(key, value)
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it speaks of the tables that it makes
        (run.folder / "logs").mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run.folder / 'logs' / 'mlflow.db').resolve()}"
        self.place = content_hash(uri)[:16]  # as it may hold a password
        self._mlflow, self._uri, self._run = mlflow, uri, run
        self._client: Any = None
        self._group, self._runs = "", dict[str, str]()

    def log(self, training: str, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        if not self._group:
            self._group = self._begin_group()
        if training not in self._runs:
            parent = {"mlflow.parentRunId": self._group}
            self._runs[training] = self._begin(stage_name(training), self._run.identity(training), parent)
        now = int(time.time() * 1000)
        metrics = [
            self._mlflow.entities.Metric(key, value, now, row.step)
            for row in rows
            for key, value in measured(row).items()
        ]
        for begin in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._runs[training], metrics=metrics[begin : begin + MOST_METRICS])

    def close(self, *, finished: bool) -> None:
        """See `Tracker`."""
        for run in (*self._runs.values(), *([self._group] if self._group else [])):
            self._client.set_terminated(run, "FINISHED" if finished else "KILLED")

    def _begin_group(self) -> str:
        """Open the connection and the run of the whole run, with the recipe as its parameters."""
        self._client = self._client or self._mlflow.MlflowClient(tracking_uri=self._uri)
        settings = {key: str(value)[:LONGEST_PARAMETER] for key, value in self._run.settings.items()}
        group = self._begin(self._run.folder.resolve().name, self._run.identity(content_hash(settings)), {})
        parameters = [self._mlflow.entities.Param(key, value) for key, value in settings.items()]
        for begin in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(group, params=parameters[begin : begin + MOST_PARAMETERS])
        return group

    def _begin(self, name: str, identity: str, tags: Mapping[str, str]) -> str:
        """Return MLflow's id of a run that was begun before, or begin it."""
        found = self._client.get_experiment_by_name(self._run.name)
        experiment = found.experiment_id if found else self._client.create_experiment(self._run.name)
        before = self._client.search_runs([experiment], f"tags.reeltag = '{identity}'")
        if before:
            self._client.update_run(before[0].info.run_id, status="RUNNING")
        run = (
            before[0]
            if before
            else self._client.create_run(experiment, run_name=name, tags={"reeltag": identity, **tags})
        )
        return str(run.info.run_id)
