"""Trackers of a run: TensorBoard, Weights & Biases, MLflow, or the user's own `Tracker`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from adapt.common.errors import AdaptError, nearest
from adapt.tracking.tracker import TrackedRun, Tracker

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
