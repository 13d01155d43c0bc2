"""MLflow, in the store that the user has configured, or MLflow's own default, a file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from filelock import FileLock

from adapt.errors import missing
from adapt.tracking.tracker import TrackedRun, Tracker, final_numbers, flat_settings, step_numbers

_TAG = "adapt.run"  # by which a run that goes on is found again
_LONGEST, _LONGEST_KEY = 500, 250  # characters of a setting and of its key, as the oldest servers take them
_REFUSED = re.compile(r"[^\w\-./: ]")  # in a key, which may be the name of a class
_AT_ONCE = {"metrics": 1000, "params": 100}  # of one request


class MLflow(Tracker):
    """Makes a run in the experiment that MLFLOW_EXPERIMENT_NAME names, by default `adapt`.

    It goes to MLFLOW_TRACKING_URI, or where `mlflow.set_tracking_uri` says; by default to mlflow.db in the working
    directory, which `mlflow ui` shows. AdaptError without the extra `mlflow`.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or it reports its use to its makers
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        try:
            import mlflow
        except ImportError:
            raise missing("mlflow as a tracker", "MLflow", "mlflow") from None
        self._library = mlflow
        self._client: Any = None
        self._run = ""
        self._step = 0

    def started(self, run: TrackedRun) -> None:
        self._step = run.step
        with self._alone():
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
        for begin in range(0, len(settings), _AT_ONCE["params"]):
            self._client.log_batch(self._run, params=settings[begin : begin + _AT_ONCE["params"]])

    def steps(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._log([(entry["step"], step_numbers(entry)) for entry in entries])
        self._step = entries[-1]["step"]

    def finished(self, metrics: Mapping[str, Any]) -> None:
        self._log([(self._step, final_numbers(metrics))])
        self._client.set_terminated(self._run, "FINISHED")

    def stopped(self, error: BaseException) -> None:
        self._client.set_terminated(self._run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _alone(self) -> AbstractContextManager[Any]:
        """Keeps runs that start at once apart while the first makes the tables of a file, which they would all make."""
        kind, _, path = self._library.get_tracking_uri().partition("?")[0].partition(":///")
        return FileLock(f"{path}.lock") if kind == "sqlite" else nullcontext()

    def _experiment(self, name: str) -> str:
        """Its id; it is made where there is none."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except self._library.MlflowException:  # on a server, by a run that started at once
                found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _log(self, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        now = round(1000 * time.time())
        metrics = [
            self._library.entities.Metric(name, value, now, step)
            for step, numbers in steps
            for name, value in numbers.items()
        ]
        for begin in range(0, len(metrics), _AT_ONCE["metrics"]):
            self._client.log_batch(self._run, metrics[begin : begin + _AT_ONCE["metrics"]])
