"""The journal of a run: each step is a line of log.jsonl, and reaches the trackers once a checkpoint has it."""

from __future__ import annotations

import logging
import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from adapt.common import plain
from adapt.common.disk import write_text
from adapt.common.errors import AdaptError
from adapt.common.progress import LogEntry
from adapt.common.shown import shown
from adapt.evaluation import stored
from adapt.tracking import TrackedRun, Tracker
from adapt.training.run import Run

logger = logging.getLogger("adapt")


class Journal:
    """The journal of a training run, which writes the log and reports to trackers, and starts and stops the trackers.

    The run may have no directory. A tracker that raises an exception is dropped with a warning, and the run continues.
    """

    def __init__(
        self, trackers: Sequence[Tracker], run: Run | None, method: str, settings: Mapping[str, object]
    ) -> None:
        self.history: list[LogEntry] = []
        self._trackers, self._run, self._settings = list(trackers), run, settings
        self._name = method if run is None else "/".join(run.path.resolve().parts[-2:])
        self._told: dict[str, int] = {}  # by tracker: the last step that it was sent
        self._id = secrets.token_hex(6)

    def __enter__(self) -> Self:
        if self._run is not None and self._run.resume and self._run.tracking.exists():
            previous = stored.read(self._run.tracking, stored.Tracking, "trackers of a run")
            self._id, self._told = previous["id"], previous["told"]
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
        """Drop log entries after `step`, where a resumed run continues, and load the earlier entries as the history."""
        if self._run is not None and self._run.resume and self._run.writes:
            self._run.cut_log(step)
            self.history = self._run.history() if step else []

    def step(self, entry: LogEntry) -> None:
        """Append the log entry of a finished training step."""
        self.history.append(entry)
        if self._run is not None:
            self._run.log(entry)

    def saved(self) -> None:
        """Send new log entries to the trackers, once a checkpoint contains the steps, so that no step is sent twice."""
        self._tell(self._catch_up)
        self._note()

    def finished(self, metrics: Mapping[str, object]) -> None:
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

    def _tell(self, send: Callable[[Tracker], None]) -> None:
        """Call `send` for every tracker, and drop trackers that raise an exception."""
        for tracker in list(self._trackers):
            try:
                send(tracker)
            except AdaptError:
                raise
            except Exception as error:  # noqa: BLE001 - third-party code must not cost the run
                logger.warning("tracker %s failed and no longer follows this run: %s", tracker.name, shown(repr(error)))
                self._trackers.remove(tracker)

    def _note(self) -> None:
        """Write tracking.json, from which a resumed run reads the last step that each tracker received."""
        if self._told and self._run is not None and self._run.writes:
            write_text(self._run.tracking, plain.dump({"id": self._id, "told": self._told}) + "\n")
