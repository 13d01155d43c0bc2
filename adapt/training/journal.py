"""What is said of a run's steps: a line of its log.jsonl each, and from there, once they are safe, to its trackers."""

from __future__ import annotations

import logging
import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from adapt import plain
from adapt.disk import write_text
from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.shown import shown
from adapt.tracking import TrackedRun, Tracker
from adapt.training.run import Run

logger = logging.getLogger("adapt")


class Journal:
    """Of one run, with a directory or without; inside it as a context manager, trackers know of the run.

    Of a tracker that fails the rest is told by a warning, and nothing more is told to it.
    """

    def __init__(self, trackers: Sequence[Tracker], run: Run | None, method: str, settings: Mapping[str, Any]) -> None:
        self.history: list[dict[str, Any]] = []
        self._trackers, self._run, self._settings = list(trackers), run, settings
        self._name = method if run is None else "/".join(run.path.resolve().parts[-2:])
        self._told: dict[str, int] = {}  # tracker -> the last step that it was told of
        self._id = secrets.token_hex(6)

    def __enter__(self) -> Self:
        if self._run is not None and self._run.resume and self._run.tracking.exists():
            known = stored.read(self._run.tracking, stored.Tracking, "trackers of a run")
            self._id, self._told = known["id"], known["told"]
        self._tell(lambda tracker: tracker.started(self._described(tracker)))
        for tracker in self._trackers:
            self._told.setdefault(tracker.name, 0)
        self._note()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._tell(lambda tracker: tracker.stopped(error))

    def go_on(self, step: int) -> None:
        """What was logged behind `step`, where the run was stopped, is left out; what comes before is its history."""
        if self._run is not None and self._run.resume and self._run.writes:
            self._run.cut_log(step)
            self.history = self._run.history() if step else []

    def step(self, entry: dict[str, Any]) -> None:
        """One more step is done."""
        self.history.append(entry)
        if self._run is not None:
            self._run.log(entry)

    def saved(self) -> None:
        """All steps up to here are safe: a run that goes on does so behind them."""
        self._tell(self._catch_up)
        self._note()

    def finished(self, metrics: Mapping[str, Any]) -> None:
        self._tell(lambda tracker: tracker.finished(metrics))

    def _described(self, tracker: Tracker) -> TrackedRun:
        folder = None if self._run is None else self._run.path
        resumed, step = tracker.name in self._told, self._told.get(tracker.name, 0)
        return TrackedRun(self._id, self._name, self._settings, folder, resumed, step)

    def _catch_up(self, tracker: Tracker) -> None:
        new = self.history[bisect_right(self.history, self._told[tracker.name], key=lambda entry: entry["step"]) :]
        if new:
            tracker.steps(new)
            self._told[tracker.name] = new[-1]["step"]

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except AdaptError:
                raise
            except Exception as error:  # noqa: BLE001 - a stranger's code, for which no run is to be lost
                logger.warning("%s failed, and is told no more of this run: %s", tracker.name, shown(repr(error)))
                self._trackers.remove(tracker)

    def _note(self) -> None:
        """Keeps what a run that goes on has to know."""
        if self._told and self._run is not None and self._run.writes:
            write_text(self._run.tracking, plain.dump({"id": self._id, "told": self._told}) + "\n")
