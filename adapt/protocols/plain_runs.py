"""Tables of runs that belong to no protocol; runs that differ only by seed share a row."""

from __future__ import annotations

import logging
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapt.common import plain
from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.common.shown import shown
from adapt.evaluation import stored
from adapt.evaluation.intervals import between
from adapt.evaluation.scores import Scores, main_figure
from adapt.recipe import DataSection, Recipe
from adapt.recipe.file import read_file

logger = logging.getLogger("adapt")
HEADER = [
    "", "gain", "zero-shot", "adapted", "backbone", "data", "shots", "seeds", "calibration error", "parameters",
    "seconds",
]  # fmt: skip
_USUAL = dict(plain.leaves(Recipe(method={"name": ""}, data=DataSection(source="")).model_dump(mode="json")))
# shown in other columns or on another page, or without effect on figures
_UNTOLD = "seed", "data.source", "data.shots", "backbone", "cache", "checkpointing", "text_memory_gib", "train.workers"


@dataclass(frozen=True)
class PlainRun:
    """A finished run: its folder, its recipe as plain data, and its metrics."""

    path: Path
    recipe: JsonObject
    metrics: JsonObject

    @property
    def figure(self) -> str:
        """The name of the metric by which runs are compared, such as accuracy."""
        return main_figure(self.metrics.get("adapted", {}))[0]

    @property
    def adapted(self) -> float | None:
        """The adapted model's metric on the test images, in [0, 1]; None if there were no test images."""
        return self.metrics["adapted"][self.figure] if "adapted" in self.metrics else None

    @property
    def zero_shot(self) -> float | None:
        """The metric of zero-shot classification on the test images, in [0, 1]; None if zero-shot was not measured."""
        return self.metrics["zero_shot"][self.figure] if "zero_shot" in self.metrics else None

    @property
    def gain(self) -> float | None:
        """The adapted model's metric minus the zero-shot metric; None if either metric was not measured."""
        return None if self.adapted is None or self.zero_shot is None else self.adapted - self.zero_shot


def is_run(path: Path) -> bool:
    """Return whether the folder `path` is the directory of a finished run."""
    return (path / "metrics.json").is_file()


def read_run(path: Path) -> PlainRun:
    """Return the finished run in the folder `path`. Raises AdaptError if the run's files are damaged."""
    metrics = stored.read(path / "metrics.json", stored.Metrics, "metrics of a finished run")
    return PlainRun(path, read_file(path / "recipe.yaml", str(path / "recipe.yaml")).settings, metrics)


def pooled(runs: Sequence[PlainRun]) -> list[list[PlainRun]]:
    """Return groups of runs on equal test images that differ only by seed, ordered by the first run of each group."""
    keys = ((repr(sorted(plain.leaves(run.recipe | {"seed": None}))), run.metrics.get("test_set")) for run in runs)
    groups = grouped(zip(keys, runs))
    if len({recipe for recipe, _ in groups}) < len(groups):
        logger.warning("runs with equal settings were measured on different test images, and so have rows of their own")
    return list(groups.values())


def plain_table(runs: Sequence[PlainRun]) -> list[list[str]]:
    """Return a table with a header, and one row for each group of runs that differ only by seed.

    Runs without test images have `not measured` as the adapted model's metric, and other metrics are empty.
    """
    groups = pooled(runs)
    return [HEADER, *map(_row, titles([group[0].recipe for group in groups]), groups)]


def nearest_the_mean(group: Sequence[PlainRun]) -> PlainRun:
    """Return the run whose metric is nearest to the mean of its group, or the first run if no metric was measured."""
    measured = [run for run in group if run.adapted is not None]
    if not measured:
        return group[0]
    mean = statistics.mean(run.adapted for run in measured if run.adapted is not None)
    return min(measured, key=lambda run: abs((run.adapted or 0.0) - mean))


def mean_gain(group: Sequence[PlainRun]) -> float | None:
    """Return the mean gain of a group of runs over zero-shot classification; None if no run has a gain."""
    gains = [run.gain for run in group if run.gain is not None]
    return statistics.mean(gains) if gains else None


def titles(recipes: Sequence[JsonObject]) -> list[str]:
    """Return a title for each recipe: its method, and the settings by which it has several on the same data.

    Settings that are as usual, that tables show elsewhere, or that change no figure name no recipe.
    """
    known, differing = [dict(plain.leaves(recipe)) for recipe in recipes], defaultdict[object, set[str]](set)
    alike = grouped(((own.get("method.name"), source_of(recipe)), own) for own, recipe in zip(known, recipes))
    for (method, _), several in alike.items():
        differing[method].update(
            key for one in several for key in one if any(other.get(key) != one[key] for other in several)
        )
    found = []
    for own in known:
        method = str(own.get("method.name"))
        telling = [
            f"{key.removeprefix('method.')}={shown(str(value))}"
            for key, value in own.items()
            if key in differing[method] and key not in _UNTOLD and value not in (None, _USUAL.get(key))
        ]
        found.append(f"{method} ({', '.join(telling)})" if telling else method)
    return found


def source_of(recipe: JsonObject) -> str:
    """Return the name of a recipe's data set, or the absolute path of a folder or file; "" if it names none."""
    source = plain.within(recipe, "data", "source", kind=str) or ""
    return os.path.abspath(source) if os.path.exists(source) else source.rstrip("/")


def _row(name: str, group: Sequence[PlainRun]) -> list[str]:
    data = group[0].recipe.get("data")
    data = data if isinstance(data, dict) else {}
    measured = [run.metrics.get("adapted", {}) for run in group]
    errors = [figures["calibration_error"] for figures in measured if "calibration_error" in figures]
    adapted = percent([run.adapted for run in group if run.adapted is not None])
    figure, title = main_figure(measured[0])
    named = "" if figure == Scores.main else f" {title}"
    shots = data.get("shots", "")
    return [
        name,
        percent([run.gain for run in group if run.gain is not None], sign=True),
        percent([run.zero_shot for run in group if run.zero_shot is not None]) + _between(group, "zero_shot"),
        f"{adapted}{named}{_between(group, 'adapted')}" if adapted else "not measured",
        shown(str(group[0].recipe.get("backbone", ""))),
        shown(str(data.get("source", ""))),
        "all" if shots is None else str(shots),
        ", ".join(str(run.metrics["seed"]) for run in group),
        percent(errors),
        f"{group[0].metrics['trainable_parameters']:,}",
        f"{statistics.mean(run.metrics['seconds'] for run in group):.1f}",
    ]


def _between(group: Sequence[PlainRun], part: str) -> str:
    """Return the interval at 95 % of the figure of a single run as text, or "" for several runs."""
    ends = group[0].metrics.get(part, {}).get("intervals", {}).get(group[0].figure)
    return between(ends) if len(group) == 1 else ""


def percent(values: Sequence[float], sign: bool = False) -> str:
    """Return the mean of `values` in per cent as text, with the standard deviation if there are several values."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):{'+' if sign else ''}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean
