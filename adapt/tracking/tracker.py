"""What a tracker is told of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt import plain


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is to be told of."""

    id: str
    """Letters and digits that no other run has; a run that goes on after a stop keeps them."""
    name: str
    """The last two parts of its directory's path, such as `runs/first`; without a directory the method's name."""
    settings: Mapping[str, Any]
    """Its recipe, as in recipe.yaml."""
    folder: Path | None
    """Its directory."""
    resumed: bool
    """Whether this tracker knows it already."""
    step: int
    """The last step that this tracker was told of; 0 of a new run."""


class Tracker:
    """Told of a run as it goes: derive from it, and override what you need.

    Steps are told once the run's checkpoint holds them: at the end of each epoch, and within one every
    `checkpoint_minutes`. So a run that is killed and resumed tells each step once, in their order. A tracker that
    raises is left out from then on, with a warning, and the run goes on.
    """

    needs_folder: bool = False
    """Whether it can track only runs that have a directory."""

    @property
    def name(self) -> str:
        """By which a resumed run knows its trackers again."""
        return type(self).__name__

    def started(self, run: TrackedRun) -> None:
        """Training is about to begin, or to go on."""

    def steps(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """More steps are done: their lines of log.jsonl."""

    def finished(self, metrics: Mapping[str, Any]) -> None:
        """The run is complete, with what metrics.json holds."""

    def stopped(self, error: BaseException) -> None:
        """The run failed, or was interrupted by KeyboardInterrupt; it may go on later."""


def step_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step's entry but its count, such as `train/loss` and, of a term, `train/terms/kl`."""
    return {f"train/{name}": value for name, value in _numbers(entry) if name != "step"}


def final_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json, such as `adapted/accuracy`, but what grows with the classes."""
    return {name: value for name, value in _numbers(metrics) if "by_class" not in name.split("/")}


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The settings by key, such as `train.lr`; what is neither a number nor a text as a text."""
    return {
        key: value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in plain.leaves(settings)
    }


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in plain.leaves(values, "/"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
