"""Runs that no protocol made, side by side: those that differ by their seed alone are one row."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.protocols.tables import Cells
from adapt.recipe.file import read_file
from adapt.shown import shown

HEADER = ["", "data", "shots", "seeds", "zero-shot", "adapted", "gain", "calibration error", "parameters", "seconds"]


@dataclass(frozen=True)
class PlainRun:
    """A finished run: its folder, its recipe as plain data, and its metrics."""

    path: Path
    recipe: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def settings(self) -> dict[str, Any]:
        """All keys of the recipe with their values, but for the seed."""
        return {key: value for key, value in _flat(self.recipe) if key != "seed"}


def is_run(path: Path) -> bool:
    """Whether the folder is a finished run."""
    return (path / "metrics.json").is_file()


def read_run(path: Path) -> PlainRun:
    """The finished run in a folder. AdaptError where it is damaged."""
    metrics = stored.read(path / "metrics.json", stored.Metrics, "metrics of a finished run")
    return PlainRun(path, read_file(path / "recipe.yaml", str(path / "recipe.yaml")).settings, metrics)


def pooled(runs: Sequence[PlainRun]) -> list[list[PlainRun]]:
    """Runs in groups that differ by their seed alone, in the order of the first of each."""
    groups: list[list[PlainRun]] = []
    for run in runs:
        own = next((group for group in groups if group[0].settings == run.settings), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    return groups


def plain_table(runs: Sequence[PlainRun]) -> Cells:
    """A header, and a row for each group of runs. AdaptError where a run was not measured."""
    groups = pooled(runs)
    return [HEADER, *map(_row, names(groups), groups)]


def names(groups: Sequence[Sequence[PlainRun]]) -> list[str]:
    """The methods' names, with what is set differently where several groups have the same one."""
    methods = [group[0].metrics["method"] for group in groups]
    return [
        _name(group[0], [other[0] for other, name in zip(groups, methods) if name == method])
        for group, method in zip(groups, methods)
    ]


def _name(run: PlainRun, same: Sequence[PlainRun]) -> str:
    own = run.settings
    elsewhere = ("data.source", "data.shots", "backbone")  # which have columns, or a page, of their own
    differing = [
        key
        for key in dict.fromkeys(key for other in same for key in other.settings)
        if any(other.settings.get(key) != own.get(key) for other in same) and key not in elsewhere
    ]
    said = ", ".join(f"{key.removeprefix('method.')}={shown(str(own[key]))}" for key in differing if key in own)
    return f"{run.metrics['method']} ({said})" if said else str(run.metrics["method"])


def _row(name: str, group: Sequence[PlainRun]) -> list[str]:
    data = group[0].recipe.get("data") or {}
    for run in group:
        if "adapted" not in run.metrics:
            raise AdaptError(f"the run in {run.path} was measured on no test image: there is nothing to show")
    adapted = [run.metrics["adapted"]["accuracy"] for run in group]
    zero_shot = [run.metrics["zero_shot"]["accuracy"] for run in group if "zero_shot" in run.metrics]
    gain = [mine - frozen for mine, frozen in zip(adapted, zero_shot)] if len(zero_shot) == len(group) else []
    shots = data.get("shots", "") if isinstance(data, dict) else ""
    return [
        name,
        shown(str(data.get("source", ""))),
        "all" if shots is None else str(shots),
        ", ".join(str(run.seed) for run in group),
        percent(zero_shot),
        percent(adapted),
        percent(gain, sign=True),
        percent([run.metrics["adapted"]["calibration_error"] for run in group]),
        f"{group[0].metrics['trainable_parameters']:,}",
        f"{statistics.mean(run.metrics['seconds'] for run in group):.1f}",
    ]


def percent(values: Sequence[float], sign: bool = False) -> str:
    """Their mean in per cent, with the standard deviation where there are several."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):{'+' if sign else ''}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
