"""Where else a run's numbers go: TensorBoard, Weights & Biases, MLflow, or a `Tracker` of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from adapt.errors import AdaptError, nearest
from adapt.tracking.tracker import TrackedRun, Tracker

__all__ = ["SHIPPED", "Track", "TrackedRun", "Tracker", "trackers"]

Track = str | Tracker | Sequence[str | Tracker]  # what a user gives: names of SHIPPED, or trackers

SHIPPED = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}  # name -> class


def trackers(track: Track, out: object) -> list[Tracker]:
    """The trackers that `track` names or is, of a run in the directory `out`, or None. Nothing is started.

    Raises AdaptError for an unknown name, what is no tracker, one that stands twice, and where an extra, or a directory
    that one needs, is missing.
    """
    given = track if isinstance(track, Sequence) and not isinstance(track, str) else [track]
    found = [_shipped(each) if isinstance(each, str) else _checked(each) for each in given]
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise AdaptError(f"{name} is to track a run twice: give it once, or two trackers a name each")
    for each in found:
        if each.needs_folder and out is None:
            raise AdaptError(f"{each.name} writes into the run's directory, and there is none: give out (--out)")
    return found


def _shipped(name: str) -> Tracker:
    if name not in SHIPPED:
        raise AdaptError(f"there is no tracker {name!r}; {nearest(name, SHIPPED)}. One of your own is an object")
    tracker: Tracker = getattr(import_module(f"adapt.tracking.{name}"), SHIPPED[name])()
    return tracker


def _checked(tracker: object) -> Tracker:
    if not isinstance(tracker, Tracker):
        name = getattr(tracker, "__name__", type(tracker).__name__)
        raise AdaptError(f"{name} is no tracker: derive it from adapt.Tracker, and give an object")
    return tracker
