"""Trackers of a run: TensorBoard, Weights & Biases, MLflow, or the user's own `Tracker`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from adapt.common import plain
from adapt.common.errors import AdaptError, nearest
from adapt.common.progress import LogEntry


@dataclass(frozen=True)
class TrackedRun:
    """The description of a training run that a tracker receives, with id, name, settings, folder and progress."""

    id: str
    """Letters and digits that no other run has, kept when a run is resumed."""
    name: str
    """The last two parts of its directory's path, such as `runs/first`, or the method's name without a directory."""
    settings: Mapping[str, object]
    """The recipe, as in recipe.yaml."""
    folder: Path | None
    """The run's directory."""
    resumed: bool
    """Whether this tracker has followed the run before."""
    step: int
    """The last step that this tracker received; 0 for a new run."""


class Tracker:
    """The base class of trackers, whose methods are called during a training run. Override the methods that you need.

    Training steps are reported after each checkpoint, which is written at the end of each epoch, and within an epoch
    every `checkpoint_minutes`. So a run that is killed and resumed reports each step once, in order. A tracker that
    raises an exception is dropped with a warning, and the run continues.
    """

    needs_folder: bool = False
    """Whether it can track only runs that have a directory."""

    @property
    def name(self) -> str:
        """The name by which a resumed run recognises the tracker."""
        return type(self).__name__

    def started(self, run: TrackedRun) -> None:
        """Called before training begins or resumes."""

    def steps(self, entries: Sequence[LogEntry]) -> None:
        """Called with the entries of log.jsonl for the training steps since the last call."""

    def finished(self, metrics: Mapping[str, object]) -> None:
        """Called with the content of metrics.json when the run is complete."""

    def stopped(self, error: BaseException) -> None:
        """Called when the run has failed or was interrupted (KeyboardInterrupt); the run may be resumed later."""


def step_numbers(entry: LogEntry) -> dict[str, float]:
    """Return a dictionary of the numbers in a step's log entry, with names such as `train/loss` or `train/terms/kl`."""
    return {f"train/{name}": value for name, value in _numbers(entry) if name != "step"}


def final_numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return a dictionary of the numbers in metrics.json, such as `adapted/accuracy`, without per-class numbers."""
    return {name: value for name, value in _numbers(metrics) if "by_class" not in name.split("/")}


def flat_settings(settings: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Return nested settings as a flat dictionary with dotted keys such as `train.lr`, and with lists as texts."""
    return {
        key: value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in plain.leaves(settings)
    }


def _numbers(values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in plain.leaves(values, "/"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


__all__ = ["SHIPPED", "Track", "TrackedRun", "Tracker", "trackers"]

Track = str | Tracker | Sequence[str | Tracker]  # names in SHIPPED, or trackers

SHIPPED = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}  # name -> class


def trackers(track: Track, out: object) -> list[Tracker]:
    """Return the trackers given by `track`, as names or as `Tracker` objects, without starting the trackers.

    `out` is the run directory or None. Raises AdaptError for an unknown name, an object that is not a tracker, a
    duplicate, a missing library, or a tracker that needs a run directory if `out` is None.
    """
    given = track if isinstance(track, Sequence) and not isinstance(track, str) else [track]
    chosen = [_made(each) for each in given]
    names = [each.name for each in chosen]
    for each in chosen:
        if names.count(each.name) > 1:
            raise AdaptError(f"{each.name} would track a run twice: remove one, or give the trackers different names")
        if each.needs_folder and out is None:
            raise AdaptError(
                f"{each.name} writes into the run directory, but this run has no directory: give --out (out=)"
            )
    return chosen


def _made(tracker: object) -> Tracker:
    if isinstance(tracker, str):
        if tracker not in SHIPPED:
            raise AdaptError(
                f"there is no tracker {tracker!r}; {nearest(tracker, SHIPPED)}; give a tracker of your own as an object"
            )
        tracker = getattr(import_module(f"adapt.tracking.{tracker}"), SHIPPED[tracker])()
    if not isinstance(tracker, Tracker):
        name = getattr(tracker, "__name__", type(tracker).__name__)
        raise AdaptError(f"{name} is not a tracker: give an object of a class derived from adapt.Tracker")
    return tracker
