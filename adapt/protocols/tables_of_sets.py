"""Tables over several data sets, as papers print them, and tests of differences between methods.

The average of harmonic means is the harmonic mean of the averages, as in the papers (CoCoOp, section 4.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from adapt.common.errors import AdaptError, nearest
from adapt.protocols.papers import data_set
from adapt.protocols.protocol import harmonic
from adapt.protocols.run_protocol import Results
from adapt.protocols.table_formats import Cells, TableRow, Value
from adapt.protocols.tables import baseline_name, check_alike, figure_of, titles

SAME = 1e-9  # spread of differences that are equal but for rounding
Curve = dict[int, Value]  # accuracies by shots
_Raw = list[dict[int, float]]  # for each figure that a case reads, the accuracies by seed


class _Case(NamedTuple):
    """A block of a table: its name, and the figures of runs that it reads, of two figures the harmonic mean."""

    name: str
    figures: tuple[str, ...]
    shots: int | None = None

    def raw(self, results: Results, prefix: str = "") -> _Raw:
        """Return the accuracies by seed, which are empty if the results have none."""
        rows = [row for row in results["runs"] if self.shots is None or row["shots"] == self.shots]
        return [{row["seed"]: row[f"{prefix}{figure}"] for row in rows} for figure in self.figures]

    def frozen(self, results: Results) -> _Raw:
        """Return the mean accuracies of the baseline, as if of one seed."""
        return [{0: mean(own.values())} if own else {} for own in self.raw(results, "zero_shot_")]

    def joined(self, figures: Sequence[float]) -> float:
        """Return the value of a case whose figures have the values `figures`."""
        return figures[0] if len(figures) == 1 else harmonic(*figures)

    def value(self, sets: Sequence[_Raw]) -> Value | str:
        """Return the average over data sets, with the deviation of the seeds' averages; "" if a set has no figure.

        There is no deviation if the data sets have different seeds.
        """
        if not all(all(raw) for raw in sets):
            return ""
        average = self.joined([mean(mean(raw[place].values()) for raw in sets) for place in range(len(self.figures))])
        seeds = {tuple(sorted(raw[0])) for raw in sets}
        if len(seeds) > 1 or len(min(seeds)) < 2:
            return Value(average, runs=min(map(len, seeds)))
        [own] = seeds
        by_seed = [
            self.joined([mean(raw[place][seed] for raw in sets) for place in range(len(self.figures))]) for seed in own
        ]
        return Value(average, stdev(by_seed), len(own))


class _Grid:
    """Results by method and data set."""

    def __init__(self, results: Sequence[Results]) -> None:
        first = results[0]
        check_alike(results, _described, "protocol, backbone and figure")
        named = _titles(results) if several_sets(results) else titles(results)
        self.methods = list(dict.fromkeys(named))
        self.sets = list(dict.fromkeys(map(_source, results)))
        self._of: dict[tuple[str, str], Results] = {}
        for title, each in zip(named, results, strict=True):
            if (title, _source(each)) in self._of:
                raise AdaptError(
                    f"there are two results of {title} on {_source(each)}; expected one of each method and data set"
                )
            self._of[title, _source(each)] = each
        self.baseline = baseline_name(first)
        self.cases = _cases(results)

    def raw(self, case: _Case, method: str) -> list[_Raw]:
        """Return a method's accuracies on each data set, empty where there are none."""
        return [
            case.raw(self._of[method, each]) if (method, each) in self._of else [{}] * len(case.figures)
            for each in self.sets
        ]

    def baselines(self, case: _Case) -> list[_Raw]:
        """Return the baseline's accuracies on each data set."""
        return [
            next((raw for (_, own), each in self._of.items() if own == source and all(raw := case.frozen(each))), [{}])
            for source in self.sets
        ]


def several_sets(results: Sequence[Results]) -> bool:
    """Return whether the results are of more than one data set."""
    return len(set(map(_source, results))) > 1


def table_of_sets(results: Sequence[Results]) -> Cells:
    """Return a table of base-to-new or few-shot results on several data sets, with a block for each figure.

    Cells are empty where a method has no results; then its average is empty too. Raises AdaptError for another
    protocol, different protocols or backbones, and two results of a method on a data set.
    """
    grid = _Grid(results)
    rows: list[TableRow] = [[figure_of(results[0]), "", *_names(grid.sets), "average"]]
    for case in grid.cases:
        known = {grid.baseline: grid.baselines(case)} | {method: grid.raw(case, method) for method in grid.methods}
        rows += [
            [title, case.name, *(case.value([raw]) for raw in sets), case.value(sets)] for title, sets in known.items()
        ]
        rows.append([])
    return rows[:-1]


def curves(results: Sequence[Results]) -> dict[str, dict[str, Curve]]:
    """Return few-shot accuracies by data set, method and shots; the first line of each data set is the baseline.

    The first of several data sets is their average, of the methods that have results on all, if there are any. Raises
    AdaptError as `table_of_sets` does.
    """
    grid = _Grid(results)
    sets = dict(zip(_names(grid.sets), range(len(grid.sets)), strict=True))
    panels = {name: slice(place, place + 1) for name, place in sets.items()}
    if len(sets) > 1:
        panels = {"average": slice(None)} | panels
    lines = {grid.baseline: grid.baselines} | {method: partial(grid.raw, method=method) for method in grid.methods}
    drawn: dict[str, dict[str, Curve]] = {}
    for name, own in panels.items():
        drawn[name] = {}
        for title, raw in lines.items():
            values = {case.shots or 0: case.value(raw(case)[own]) for case in grid.cases}
            drawn[name][title] = {shots: value for shots, value in values.items() if isinstance(value, Value)}
    return {name: lines for name, lines in drawn.items() if any(lines.values())}


def differences(results: Sequence[Results], against: str) -> Cells:
    """Return the mean differences of the methods from the method `against`, with p values of paired t-tests.

    A pair is the same seed on the same data set. The p values are two-sided, and not corrected for many methods; there
    is none if all differences are equal. Raises AdaptError for an unknown method, and if there is no pair at all.
    """
    from scipy.stats import ttest_rel

    grid = _Grid(results)
    if against not in grid.methods:
        raise AdaptError(f"there is no row {against!r} to compare with; {nearest(against, grid.methods)}")
    rows: list[TableRow] = [[f"minus {against}", "", "points", "p", "pairs"]]
    for case in grid.cases:
        for method in grid.methods:
            if method == against:
                continue
            pairs = [
                (case.joined([own[seed] for own in one]), case.joined([own[seed] for own in other]))
                for one, other in zip(grid.raw(case, method), grid.raw(case, against), strict=True)
                for seed in sorted(one[0].keys() & other[0].keys())
            ]
            apart = [one - other for one, other in pairs]
            points = f"{100 * mean(apart):+.2f}" if apart else ""
            tested = len(apart) > 1 and stdev(apart) > SAME
            p = f"{float(ttest_rel(*zip(*pairs, strict=True)).pvalue):.2g}" if tested else ""
            rows.append([method, case.name, points, p, str(len(pairs))])
    if rows[1:] and all(pairs == "0" for *_, pairs in rows[1:]):
        raise AdaptError(
            f"{against} and the other methods have no seed in common at the same shots on the same data: run them "
            "with the same --seeds and --shots"
        )
    return rows


def _cases(results: Sequence[Results]) -> list[_Case]:
    protocol = results[0]["protocol"]
    if protocol == "base_to_new":
        return [_Case("base", ("base",)), _Case("new", ("new",)), _Case("harmonic", ("base", "new"))]
    if protocol == "few_shot":
        shots = sorted({int(row["shots"]) for each in results for row in each["runs"]})
        return [_Case(f"{each} shots" if each > 1 else "1 shot", ("test",), each) for each in shots]
    raise AdaptError(
        f"tables over data sets, and differences, are of few-shot or base-to-new results, not of {protocol}"
    )


def _titles(results: Sequence[Results]) -> list[str]:
    """Return a title for each result: the method's name, and settings by which it has several on one data set.

    Settings that differ from data set to data set, such as templates, do not count.
    """
    methods = [dict(each["recipe"]["method"]) for each in results]
    titles = []
    for own in methods:
        of_sets: dict[str, list[dict[str, object]]] = {}
        for each, method in zip(results, methods, strict=True):
            if method["name"] == own["name"]:
                of_sets.setdefault(_source(each), []).append(method)
        keys = sorted(
            {
                key
                for same in of_sets.values()
                for method in same
                for key in method
                if any(other.get(key) != method[key] for other in same)
            }
        )
        settings = ", ".join(f"{key}={own[key]}" for key in keys if key in own) or "defaults"
        titles.append(f"{own['name']} ({settings})" if keys else str(own["name"]))
    return titles


def _source(results: Results) -> str:
    """Return the name of the data set, or the absolute path of a folder or file."""
    source = str(results["recipe"]["data"]["source"])
    return os.path.abspath(source) if os.path.exists(source) else source.rstrip("/")


def _described(results: Results) -> str:
    figure = figure_of(results) or "accuracy"
    shots = f" at {results['recipe']['data'].get('shots')} shots" if results["protocol"] == "base_to_new" else ""
    return f"{results['protocol']}{shots} with {results['recipe']['backbone']}, by {figure}"


def _names(sources: Sequence[str]) -> list[str]:
    """Return short names of data sets: the last part of a path, or the last two if several have the same."""
    names = [data_set(source) or Path(source).name for source in sources]
    return [
        "/".join(Path(source).parts[-2:]) if names.count(name) > 1 else name
        for source, name in zip(sources, names, strict=True)
    ]
