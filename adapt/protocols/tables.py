"""Tables of protocols' results: for each method our mean and standard deviation, beside the published figures.

The formats come first: text for a terminal, Markdown, CSV as shown, CSV of plain numbers, and LaTeX. Then one data set,
and then several, as papers print them, with tests of differences between methods. The average of harmonic means is the
harmonic mean of the averages, as in the papers (CoCoOp, section 4.1).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import harmonic_mean, mean, stdev
from typing import Literal, NamedTuple

from adapt.common.errors import AdaptError, nearest
from adapt.common.grouping import grouped
from adapt.common.shown import csv_text
from adapt.evaluation import stored
from adapt.protocols.papers import FEW_NORMAL, averages_for, data_set, figures_for
from adapt.protocols.plain_runs import source_of, titles
from adapt.protocols.protocol import ANOMALY_FIGURES, Figures, Results
from adapt.protocols.runs import LABELS, TEST_SET

logger = logging.getLogger("adapt")

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


class Value(NamedTuple):
    """A figure in [0, 1]: the mean of `runs` runs, and their standard deviation (n - 1) if there are several."""

    mean: float
    std: float | None = None
    runs: int = 1

    def __str__(self) -> str:
        mean = f"{100 * self.mean:.1f}"
        return mean if self.std is None else f"{mean} ± {100 * self.std:.1f}"

    def behind(self, other: Value) -> bool:
        """Return whether this figure is lower than `other` by more than one standard error of the difference."""
        variance = sum((each.std or 0.0) ** 2 / each.runs for each in (self, other))
        return other.mean - self.mean > variance**0.5


TableRow = Sequence[str | Value]
Cells = Sequence[TableRow]  # the first row is the header; an empty row separates blocks


def as_text(cells: Cells) -> str:
    """Return a table as text with aligned columns, for a terminal."""
    rows = [list(map(str, row)) for row in cells]
    widths = [max(len(row[i]) for row in rows if row) for i in range(len(rows[0]))]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) if row else "" for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(cells: Cells) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in cells if row]
    return "\n".join([lines[0], "| --- " * len(cells[0]) + "|", *lines[1:]])


def as_csv(cells: Cells) -> str:
    """Return a table as CSV, in which cells that a spreadsheet would run as formulas are escaped."""
    return csv_text(map(str, row) for row in cells if row).rstrip("\n")


def as_numbers(cells: Cells) -> str:
    """Return a table as CSV of plain numbers, in per cent, with columns of their own for the deviation and the runs.

    The standard deviation is that of a sample (n - 1).
    """
    columns: list[Sequence[str]] = []
    for title, *column in zip(*filter(None, cells), strict=True):
        if any(isinstance(cell, Value) for cell in column):
            columns += zip(*[(f"{title} mean", f"{title} std (n-1)", f"{title} runs"), *map(_parts, column)])
        else:
            columns.append([title, *column])
    return csv_text(zip(*columns)).rstrip("\n")


def _parts(cell: str | Value) -> tuple[str, str, str]:
    """Return the mean, the deviation and the number of runs of a cell; if it is a text, that in place of the mean."""
    if not isinstance(cell, Value):
        return cell, "", ""
    return f"{100 * cell.mean:.4f}", "" if cell.std is None else f"{100 * cell.std:.4f}", str(cell.runs)


def as_latex(cells: Cells) -> str:
    """Return a table in LaTeX, which needs the package booktabs.

    In each column of a block the best figure is bold, and so are those that are not behind it by more than one standard
    error of the difference.
    """
    header, *rows = cells
    latex_row = "{} \\\\".format
    titles = latex_row(" & ".join(_escaped(str(cell)) for cell in header))
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", titles, r"\midrule"]
    blocks = [list(block) for filled, block in groupby(rows, bool) if filled]
    for number, block in enumerate(blocks):
        lines += [r"\midrule"] * (number > 0)
        columns = [[cell for cell in column if isinstance(cell, Value)] for column in zip(*block, strict=True)]
        best = [max(column, key=lambda value: value.mean, default=None) for column in columns]
        lines += [latex_row(" & ".join(_bold(cell, top) for cell, top in zip(row, best, strict=True))) for row in block]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _bold(cell: str | Value, best: Value | None) -> str:
    shown = _escaped(str(cell))
    if not isinstance(cell, Value) or best is None or cell.behind(best):
        return shown
    mean, _, spread = shown.partition(" ")
    return f"\\textbf{{{mean}}} {spread}".rstrip()


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^±&%$#_{}]", lambda match: _SPECIAL[match[0]], text)


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "numbers": as_numbers, "latex": as_latex}


PROTOCOLS = (
    "few_shot", "few_normal", "base_to_new", "cross_dataset", "domain_generalisation", "leave_one_out", "phases",
    "sweep",
)  # fmt: skip
_BASELINE = "zero-shot"  # of runs that name no other


def table(results: Sequence[Results], published: bool = True) -> Cells:
    """Return a table with a header, a zero-shot row, one row for each of `results`, and any published rows.

    Rows name the method, the settings by which recipes differ, and the backbone. Cells are percentages. If the metric
    is not accuracy, the top left cell contains the name of the metric. Few-shot curves have a column for each number of
    shots, leave-one-out has a column for each domain, and other protocols have a column for each figure. Sweeps have a
    row for each setting, and few normal images a row for each figure and number of images. Raises AdaptError for
    different protocols or data.
    """
    first = results[0]
    check_alike(
        results,
        lambda each: f"{each['protocol']} on {each['recipe']['data']['source']} with {each['recipe']['backbone']}",
        "protocol, data set and backbone",
    )
    if first["protocol"] == "sweep":
        return _settings_tried(results)
    if first["protocol"] == FEW_NORMAL:
        return table_of_sets(results)
    columns = list(dict.fromkeys(column for each in results for column in _of(each, "mean")))
    if first["protocol"] == "few_shot":
        columns.sort(key=int)
    rows: list[TableRow] = [
        [", ".join(filter(None, ["shots" * (first["protocol"] == "few_shot"), figure_of(first)])), *columns]
    ]
    named = _on_backbone(first)
    rows.append([named(baseline_name(first)), *(_cell(_of(first, "zero_shot"), column) for column in columns)])
    for title, each in zip(numbered(results), results):
        values = _values(each)
        rows.append([named(title), *(values.get(column, "") for column in columns)])
        if all(group.get("together") for group in each["summary"]):
            together = _of(each, "together")
            rows.append([f"{named(title)}, answers together", *(_cell(together, column) for column in columns)])
    if published:
        rows += figures_for(first, columns)
    return rows


def _settings_tried(results: Sequence[Results]) -> Cells:
    """Return a table of sweeps, with the validation accuracy (to choose by) and test accuracy of each setting."""
    rows: list[TableRow] = [[figure_of(results[0]), "validation", "test"]]
    named = _on_backbone(results[0])
    zero_shot = _cell(results[0]["summary"][0]["zero_shot"], "test")
    rows.append([named(baseline_name(results[0])), "", zero_shot])
    for title, each in zip(numbered(results), results):
        for group in each["summary"]:
            val = "" if group["val"] is None else f"{100 * group['val']:.1f}"
            name = f"{title}, {group['setting']}" if group["setting"] else title
            rows.append([named(name), val, _value(group, "test")])
    return rows


def _on_backbone(results: Results) -> Callable[[str], str]:
    """Return a function that adds the backbone to a row's title, as published rows may be of others."""
    backbone = results["recipe"]["backbone"]
    shown = Path(backbone).name if Path(backbone).is_dir() else backbone
    return lambda title: f"{title}, {shown}"


def check_alike(results: Sequence[Results], described: Callable[[Results], str], what: str) -> None:
    """Raise AdaptError if two results differ in `what` a table can have only one of, as `described` says."""
    kinds = list(dict.fromkeys(map(described, results)))
    if len(kinds) > 1:
        raise AdaptError(f"the results are of {kinds[0]} and of {kinds[1]}; expected one {what} for each table")


def figure_of(results: Results) -> str:
    """Return the name of the metric in `results`, such as mAP, or "" for accuracy."""
    return str(results["runs"][0].get("figure", "")) if results["runs"] else ""


def baseline_name(results: Results) -> str:
    """Return the name of the baseline in `results`, which is zero-shot where class names are read."""
    return str(results["runs"][0].get("baseline", _BASELINE)) if results["runs"] else _BASELINE


def numbered(results: Sequence[Results]) -> list[str]:
    """Return a title of its own for each result on one data set; those of equal recipes are numbered."""
    titled = titles([each["recipe"] for each in results])
    return [
        f"{title} ({titled[:place].count(title) + 1})" if title in titled[:place] else title
        for place, title in enumerate(titled)
    ]


def read_results(path: Path) -> list[Results]:
    """Return the protocol results in a JSON file, in a folder, or in the folders of a folder (of several data sets).

    Raises AdaptError if there are no results.
    """
    if not path.exists():
        raise AdaptError(f"{path} does not exist; expected results of a protocol, such as base_to_new.json, or a run")
    files = [path]
    if path.is_dir():
        names = [f"{name}.json" for name in PROTOCOLS]
        files = [file for name in names if (file := path / name).is_file()]
        files = files or [file for name in names for file in sorted(path.glob(f"*/{name}"))]
    if not files:
        raise AdaptError(f"{path} holds no results of a protocol, such as base_to_new.json, and no finished run")
    return [stored.read(file, stored.ProtocolResults, "results of a protocol") for file in files]


def note_other_images(results: Sequence[Results]) -> None:
    """Warn where results that stand side by side are of other test images, or of other labels of these."""
    known: dict[tuple[object, ...], object] = {}
    for each in results:
        protocol, source = each["protocol"], source_of(each["recipe"])
        for row in each["runs"]:
            hashes = {key: own for key, own in row.items() if key.startswith((TEST_SET, LABELS)) and own is not None}
            if any(
                known.setdefault((protocol, source, row.get("setting"), key), own) != own for key, own in hashes.items()
            ):
                logger.warning(
                    "results on %s are of different test images or labels, as the data changed between them: their "
                    "differences are not of the methods alone", source,
                )  # fmt: skip
                return


def _values(results: Results) -> dict[str, Value]:
    """Return the figures of trained runs by column, each with the number of its runs and their deviation.

    An average over domains counts the fewest runs of a domain, and has a deviation, of its seeds' averages, if all
    domains have the same seeds.
    """
    groups = results["summary"]
    if results["protocol"] == "few_shot":
        return {str(group["shots"]): _value(group, "test") for group in groups}
    if results["protocol"] != "leave_one_out":
        return {name: _value(groups[0], name) for name in groups[0]["mean"]}
    by_seed = grouped((row["seed"], row["test"]) for row in results["runs"])
    alike = all(len(each) == len(groups) for each in by_seed.values()) and len(by_seed) > 1
    deviation = stdev(map(mean, by_seed.values())) if alike else None
    average = Value(_of(results, "mean")["average"], deviation, min(group["runs"] for group in groups))
    return {str(group["setting"]): _value(group, "test") for group in groups} | {"average": average}


def _value(group: stored.Summary, name: str) -> Value:
    return Value(group["mean"][name], group["std"][name] if group["runs"] > 1 else None, group["runs"])


def _of(results: Results, kind: Literal["mean", "zero_shot", "together"]) -> Figures:
    """Return the figures of `kind` in `results` by column, such as means."""
    if results["protocol"] == "few_shot":
        return {str(group["shots"]): group[kind]["test"] for group in results["summary"]}
    if results["protocol"] == "leave_one_out":
        by_domain = {str(group["setting"]): group[kind]["test"] for group in results["summary"]}
        return by_domain | {"average": mean(by_domain.values())}
    return results["summary"][0][kind]


def _cell(values: Figures, column: str) -> Value | str:
    return Value(values[column]) if column in values else ""


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
        names = [f"{prefix}{figure}" for figure in self.figures]
        return [{row["seed"]: row[name] for row in rows if name in row} for name in names]

    def frozen(self, results: Results) -> _Raw:
        """Return the mean accuracies of the baseline, as if of one seed."""
        return [{0: mean(own.values())} if own else {} for own in self.raw(results, "zero_shot_")]

    def joined(self, figures: Sequence[float]) -> float:
        """Return the value of a case whose figures have the values `figures`."""
        return figures[0] if len(figures) == 1 else float(harmonic_mean(figures))

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
        named = titles([each["recipe"] for each in results]) if several_sets(results) else numbered(results)
        self.methods = list(dict.fromkeys(named))
        self._of: dict[tuple[str, str], Results] = {}
        for title, each in zip(named, results, strict=True):
            source = source_of(each["recipe"])
            if (title, source) in self._of:
                raise AdaptError(
                    f"there are two results of {title} on {source}; expected one of each method and data set"
                )
            self._of[title, source] = each
        self.sets = list(dict.fromkeys(source for _, source in self._of))
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
    return len({source_of(each["recipe"]) for each in results}) > 1


def table_of_sets(results: Sequence[Results]) -> Cells:
    """Return a table of base-to-new, few-shot or few-normal results on several data sets, a block for each figure.

    Cells are empty where a method has no results; then its average is empty too. Raises AdaptError for another
    protocol, different protocols or backbones, and two results of a method on a data set.
    """
    grid = _Grid(results)
    named = _on_backbone(results[0])
    of_maps = results[0]["protocol"] == FEW_NORMAL  # without a baseline, and published as averages
    names = _names(grid.sets)
    rows: list[TableRow] = [[figure_of(results[0]), "", *names, "average"]]
    for case in grid.cases:
        known = {} if of_maps else {grid.baseline: grid.baselines(case)}
        known |= {method: grid.raw(case, method) for method in grid.methods}
        rows += [
            [named(title), case.name, *(case.value([raw]) for raw in sets), case.value(sets)]
            for title, sets in known.items()
        ]
        for row in averages_for(names) if case.figures == ("image_auroc",) else ():
            title = f"{row['method']}, published [{row['from']}] ({row['backbone']})"
            rows.append([title, case.name, *[""] * len(names), row["values"].get(str(case.shots), "")])
        rows.append([])
    return rows[:-1]


def curves(results: Sequence[Results]) -> dict[str, dict[str, Curve]]:
    """Return few-shot accuracies by data set, method and shots; the first line of each data set is the baseline.

    The first of several data sets is their average, of the methods that have results on all, if there are any. Raises
    AdaptError as `table_of_sets` does.
    """
    grid = _Grid(results)
    panels = {name: slice(place, place + 1) for place, name in enumerate(_names(grid.sets))}
    if len(panels) > 1:
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
    shots = sorted({int(row["shots"] or 0) for each in results for row in each["runs"]})
    if protocol == "few_shot":
        return [_Case(_shots(each), ("test",), each) for each in shots]
    if protocol == FEW_NORMAL:
        return [
            _Case(f"{title}, {_shots(each)}", (name,), each)
            for name, title in ANOMALY_FIGURES.items()
            for each in shots
        ]
    raise AdaptError(
        f"tables over data sets, and differences, are of few-shot, few-normal or base-to-new results, not of {protocol}"
    )


def _shots(count: int) -> str:
    return f"{count} shots" if count > 1 else "1 shot"


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
