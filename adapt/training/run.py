"""Run directories: the files of a run, locked while in use and never overwritten, and the journal of its steps.

Each step is a line of log.jsonl, and reaches the trackers once a checkpoint has it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from adapt.common import plain
from adapt.common.devices import accelerator, described
from adapt.common.disk import locked, write_json, write_text
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.progress import LogEntry
from adapt.common.shown import brief, shown
from adapt.data.readers.lines import csv_rows
from adapt.evaluation import stored
from adapt.formats.adapter import NAME, read_header, versions
from adapt.tracking import TrackedRun, Tracker
from adapt.training.result import read_history

logger = logging.getLogger("adapt")
PICKS = "train_images.csv"  # the training images of a run
SEEN = "seen_images.csv"  # by `file_id`, what a run has learned from or chosen on


def seen_images(adapter: object) -> set[str] | None:
    """Return the ids of the images that played a part in the training of `adapter`, a file or the folder of a run.

    "" is among them if an earlier training is unknown. None if the run is not here, or the file is not of it. Raises
    AdaptError if the run's list is damaged.
    """
    path = Path(str(adapter))
    folder, file = (path, path / NAME) if path.is_dir() else (path.parent, path)
    listed, metrics = folder / SEEN, folder / "metrics.json"
    has_run = listed.is_file() and metrics.is_file()
    if adapter is None or not (file.is_file() or has_run):
        return None
    header = read_header(file)
    parts = plain.within(header.recipe, "soup", "ingredients", kind=list) or []
    members = [plain.within(part, "adapter", kind=str) for part in parts]
    if members := members or plain.within(header.recipe, "average", "adapters", kind=list) or []:
        return {image for member in members for image in seen_images(member) or {""}}
    if not has_run:
        return None
    told = header.metrics or {}
    if told.get("train_set") != stored.read(metrics, stored.Metrics, "metrics of a finished run")["train_set"]:
        return None
    columns, rows = csv_rows(listed)
    ids = {str(row.get("image")) for row in rows}
    if "image" not in columns or not ids or not all(re.fullmatch("[0-9a-f]{32}|", each) for each in ids):
        raise AdaptError(f"{listed} is damaged: delete it, and calibrate on images that are surely new")
    return ids


_OF_THE_START = ("environment.json", "tracking.json")  # written before anything is learned


class Run:
    """A run directory at `path`, which is locked while the context manager is active.

    If several processes train one model, `writes` is true only for the main process, which writes files and holds the
    lock. Raises AdaptError if another process uses the directory, or if the directory contains a run and `resume` is
    not set. With `resume`, raises AdaptError if there is no run to resume, or if the run was started with another
    recipe; in an empty directory, as a run leaves that is killed at once, a run begins.
    """

    def __init__(self, path: str | Path, recipe: str, resume: bool, writes: bool = True) -> None:
        self.path = Path(path)
        self.recipe = recipe
        self.resume = resume
        self.writes = writes
        self.data = ""  # the id of the training images, their classes, all classes and the initial adapter, once known

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        if self.path.exists() and not self.path.is_dir():
            raise AdaptError(f"{self.path} is a file, but a run needs a directory: choose another --out")
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self._lock = locked(self.path, "run")
        try:
            self._check()
            for path in self.path.glob(".*.tmp"):  # which a killed run has left
                path.unlink(missing_ok=True)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.writes:
            return
        if isinstance(value, Exception) and not self.resume and not self._begun():
            # it failed before there was anything to resume: leave the directory to the next attempt
            for name in ("recipe.yaml", *_OF_THE_START):
                (self.path / name).unlink(missing_ok=True)
            self._lock.release()
            with suppress(OSError):  # a folder with other files stays
                (self.path / ".lock").unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()
        self._lock.release()

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def tracking(self) -> Path:
        return self.path / "tracking.json"

    @property
    def goes_on(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return self.resume and self.checkpoint.is_file()

    def kept(self, name: str) -> Path:
        """Return the path `name`.json for a method's result. Raises AdaptError if the run itself uses this name."""
        if name in ("metrics", "environment", "data", "targets", "explanations", "tracking"):
            raise AdaptError(f"{name}.json is a file that the run itself writes: choose another name for the result")
        return self.path / f"{name}.json"

    @property
    def identity(self) -> str:
        """The hash of the recipe and the training data, which must equal the hash in the checkpoint."""
        return hashlib.sha256(f"{_of_any_device(self.recipe)}\n{self.data}".encode()).hexdigest()[:16]

    def _begun(self) -> bool:
        """Return whether the directory contains the results, the log or a checkpoint of a run."""
        results = {path.name for path in self.path.glob("*.json")} - {*_OF_THE_START}
        return bool(results) or self.checkpoint.exists() or (self.path / "log.jsonl").exists()

    def _check(self) -> None:
        """Write the recipe of a new run, or check that an existing run can be resumed."""
        recipe = self.path / "recipe.yaml"
        # of a run that ended before its first file
        empty = self.path not in self._made and all(each.name.startswith(".") for each in self.path.iterdir())
        self.resume = self.resume and not empty
        if not self.resume:
            if recipe.exists() or self.checkpoint.exists():
                raise AdaptError(
                    f"{self.path} already contains a run: choose another --out (out=), or continue the run with "
                    "--resume (resume=True)"
                )
            write_text(recipe, self.recipe)
            write_json(self.path / "environment.json", environment())
        elif not recipe.is_file():
            raise AdaptError(f"{self.path} contains no run to resume: leave out --resume to start a new run")
        elif (self.path / "metrics.json").exists():
            raise AdaptError(
                f"the run in {self.path} is complete and cannot be resumed: to train again, choose another --out"
            )
        elif _of_any_device(recipe.read_text(encoding="utf-8", errors="replace")) != _of_any_device(self.recipe):
            raise AdaptError(
                f"{self.path} was started with another recipe ({recipe}): use this recipe, or choose another --out"
            )
        else:
            self._note_other_versions()

    def _note_other_versions(self) -> None:
        """Warn if the run was begun with other versions of libraries, and add the present ones to environment.json."""
        path, now = self.path / "environment.json", environment()
        try:
            begun = plain.parse(path.read_bytes())
            before = dict(begun["versions"])
        except (OSError, ValueError, KeyError, TypeError):  # `text_memory` says what is wrong with it
            return
        changed = [name for name, version in now["versions"].items() if before.get(name, version) != version]
        if not changed:
            return
        logger.warning(
            "this run was begun with %s, and continues with %s: it may end differently from an uninterrupted one",
            ", ".join(f"{name} {before[name]}" for name in changed),
            ", ".join(str(now["versions"][name]) for name in changed),
        )
        write_json(path, begun | {"resumed_in": [*begun.get("resumed_in", []), now]})

    def text_memory(self, own: int) -> int:
        """Return the memory budget for encoding texts in bytes, which is `own` for a new run and is kept when resuming.

        The budget determines how classes are split into chunks, and thus the random numbers for dropout. For this
        reason, a run that is resumed on another machine keeps its budget.
        """
        if not self.writes:
            return own
        path = self.path / "environment.json"
        try:
            # the file is missing if a run was stopped before it began
            recorded = plain.parse(path.read_bytes()) if path.exists() else environment()
            if not isinstance(recorded, dict):
                raise ValueError("the file does not contain a JSON object")
            budget: int | None = recorded.get("text_memory")  # None for a new run
            if budget is not None and (type(budget) is not int or budget < 0):
                raise ValueError(f"text_memory is {brief(budget)}; expected a whole number of bytes")
        except (OSError, ValueError) as error:
            raise AdaptError(f"{path} is damaged ({error}): start a new run with another --out") from error
        if budget is None:
            write_json(path, recorded | {"text_memory": own})
        return own if budget is None else budget

    def log(self, entry: LogEntry) -> None:
        """Append the log entry of a step to log.jsonl."""
        if not self.writes:
            return
        log = self.path / "log.jsonl"
        try:
            with log.open("a") as file:
                file.write(plain.dump(entry) + "\n")
        except OSError as error:
            raise AdaptError(
                f"cannot write {log}: {error.strerror or error}; solve this problem, and continue the run with --resume"
            ) from error

    def history(self) -> list[LogEntry]:
        """Return the log entries of all steps in log.jsonl. Raises AdaptError if the file is damaged."""
        return read_history(self.path / "log.jsonl")

    def cut_log(self, step: int) -> None:
        """Delete the log entries of a killed run after the checkpoint at `step`, so that no step appears twice."""
        log = self.path / "log.jsonl"
        if self.writes and log.is_file():
            # one line per step; the last may be cut short
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[:step]
            write_text(log, "".join(f"{line}\n" for line in lines))

    def finish(self, metrics: JsonObject) -> None:
        """Write metrics.json, and delete the checkpoint."""
        write_json(self.path / "metrics.json", metrics)
        self.checkpoint.unlink(missing_ok=True)


def _of_any_device(recipe: str) -> str:
    """Return a recipe without the line with the device, because a run may be resumed on another device."""
    return "".join(line for line in recipe.splitlines(keepends=True) if not line.startswith("device: "))


def environment() -> JsonObject:
    """Return the hardware, number of threads and library versions, on which a result may depend besides the recipe."""
    import torch

    own, processor = accelerator(), platform.processor() or platform.machine()
    with suppress(OSError):  # only Linux has this file, and says there alone which processor it is
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        processor = next(iter(re.findall(r"^model name\s*: *(.+)$", told, re.MULTILINE)), processor)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": None if own is None else described(own),
        "versions": versions(),
    }


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
