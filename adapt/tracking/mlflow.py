"""The tracker for MLflow, which writes to the configured store, by default a file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from filelock import FileLock

from adapt.common.errors import needing
from adapt.common.progress import LogEntry
from adapt.data.decoding.images import in_batches
from adapt.tracking import TrackedRun, Tracker, final_numbers, flat_settings, step_numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "adapt.run"  # by which a continued run is found
_LONGEST, _LONGEST_KEY = 500, 250  # characters of a setting and of its key, the limits of the oldest servers
_REFUSED = re.compile(r"[^\w\-./: ]")  # in a key, which may be the name of a class
_METRICS, _SETTINGS = 1000, 100  # in one request


class MLflow(Tracker):
    """A tracker that creates a run in the MLflow experiment MLFLOW_EXPERIMENT_NAME, by default `adapt`.

    The tracking store is set by MLFLOW_TRACKING_URI or `mlflow.set_tracking_uri`. The default is the file mlflow.db in
    the working directory, which `mlflow ui` displays. Raises AdaptError if the extra `mlflow` is not installed.
    """

    _client: MlflowClient

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # by default MLflow reports its use
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        with needing("mlflow as a tracker", "MLflow", "mlflow"):
            import mlflow
        self._library = mlflow
        self._run = ""
        self._step = 0

    def started(self, run: TrackedRun) -> None:
        self._step = run.step
        kind, _, path = self._library.get_tracking_uri().partition("?")[0].partition(":///")
        # only one of several simultaneous runs creates the tables of a database file
        with FileLock(f"{path}.lock") if kind == "sqlite" else nullcontext():
            self._client = self._library.MlflowClient()
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "adapt"))
        known = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'") if run.resumed else []
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.id}).info.run_id
        settings = [
            self._library.entities.Param(_REFUSED.sub("_", key)[:_LONGEST_KEY], str(value)[:_LONGEST])
            for key, value in flat_settings(run.settings).items()
        ]
        for part in in_batches(settings, _SETTINGS):
            self._client.log_batch(self._run, params=part)

    def steps(self, entries: Sequence[LogEntry]) -> None:
        self._log([(entry["step"], step_numbers(entry)) for entry in entries])
        self._step = entries[-1]["step"]

    def finished(self, metrics: Mapping[str, object]) -> None:
        self._log([(self._step, final_numbers(metrics))])
        self._client.set_terminated(self._run, "FINISHED")

    def stopped(self, error: BaseException) -> None:
        self._client.set_terminated(self._run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment `name`, and create the experiment if necessary."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name))
            except self._library.MlflowException:  # created on a server meanwhile by another run
                experiment = self._client.get_experiment_by_name(name)
        assert experiment is not None
        return str(experiment.experiment_id)

    def _log(self, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        now = round(1000 * time.time())
        metrics = [
            self._library.entities.Metric(name, value, now, step)
            for step, numbers in steps
            for name, value in numbers.items()
        ]
        for part in in_batches(metrics, _METRICS):
            self._client.log_batch(self._run, metrics=part)
