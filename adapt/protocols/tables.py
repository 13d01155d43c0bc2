"""Tables of protocols' results: for each method our mean and standard deviation, beside the published figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from adapt.common.errors import AdaptError
from adapt.evaluation import stored
from adapt.protocols.papers import figures_for
from adapt.protocols.protocol import Figures
from adapt.protocols.run_protocol import Results
from adapt.protocols.table_formats import Cells, TableRow, Value

PROTOCOLS = ("few_shot", "base_to_new", "cross_dataset", "domain_generalisation", "leave_one_out", "phases", "sweep")
_BASELINE = "zero-shot"  # of runs that name no other


def table(results: Sequence[Results], published: bool = True) -> Cells:
    """Return a table with a header, a zero-shot row, one row for each of `results`, and any published rows.

    Cells are percentages. If the metric is not accuracy, the top left cell contains the name of the metric. Few-shot
    curves have a column for each number of shots, leave-one-out has a column for each domain, and other protocols have
    a column for each figure. Sweeps have a row for each setting. Raises AdaptError for different protocols or data.
    """
    first = results[0]
    check_alike(
        results,
        lambda each: f"{each['protocol']} on {each['recipe']['data']['source']} with {each['recipe']['backbone']}",
        "protocol, data set and backbone",
    )
    if first["protocol"] == "sweep":
        return _settings_tried(results)
    columns = list(dict.fromkeys(column for each in results for column in _of(each, "mean")))
    if first["protocol"] == "few_shot":
        columns.sort(key=int)
    rows: list[TableRow] = [
        [", ".join(filter(None, ["shots" * (first["protocol"] == "few_shot"), figure_of(first)])), *columns]
    ]
    rows.append([baseline_name(first), *(_cell(_of(first, "zero_shot"), column) for column in columns)])
    for title, each in zip(titles(results), results):
        runs = len(each["runs"]) // len(each["summary"])
        spread = _of(each, "std") if runs > 1 else {}
        rows.append([title, *(_cell(_of(each, "mean"), column, spread, runs) for column in columns)])
        if all(group.get("together") for group in each["summary"]):
            rows.append([f"{title}, answers together", *(_cell(_of(each, "together"), column) for column in columns)])
    if published:
        rows += figures_for(first, columns)
    return rows


def _settings_tried(results: Sequence[Results]) -> Cells:
    """Return a table of sweeps, with the validation accuracy (to choose by) and test accuracy of each setting."""
    rows: list[TableRow] = [[figure_of(results[0]), "validation", "test"]]
    rows.append([baseline_name(results[0]), "", _cell(results[0]["summary"][0]["zero_shot"], "test")])
    for title, each in zip(titles(results), results):
        for group in each["summary"]:
            spread = group["std"] if group["runs"] > 1 else None
            val = "" if group["val"] is None else f"{100 * group['val']:.1f}"
            name = f"{title}, {group['setting']}" if group["setting"] else title
            rows.append([name, val, _cell(group["mean"], "test", spread, group["runs"])])
    return rows


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


def titles(results: Sequence[Results]) -> list[str]:
    """Return a title of its own for each result: the method's name, with settings if several have the same method.

    Results that differ in the rest of their recipes alone are numbered.
    """
    methods = [dict(each["recipe"]["method"]) for each in results]
    names = [str(method.pop("name")) for method in methods]
    titled = [
        name
        if names.count(name) == 1
        else f"{name} ({', '.join(f'{key}={value}' for key, value in method.items()) or 'defaults'})"
        for name, method in zip(names, methods)
    ]
    return [
        f"{title} ({titled[:place].count(title) + 1})" if titled[:place].count(title) else title
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


def _of(results: Results, kind: Literal["mean", "std", "zero_shot", "together"]) -> Figures:
    """Return the figures of `kind` in `results` by column, such as means or standard deviations."""
    if results["protocol"] == "few_shot":
        return {str(group["shots"]): group[kind]["test"] for group in results["summary"]}
    if results["protocol"] == "leave_one_out":
        by_domain = {str(group["setting"]): group[kind]["test"] for group in results["summary"]}
        average = statistics.mean(by_domain.values())
        if kind == "std":  # over the seeds, of the mean accuracy over the domains
            by_seed: dict[int, list[float]] = {}
            for row in results["runs"]:
                by_seed.setdefault(row["seed"], []).append(row["test"])
            averages = [statistics.mean(each) for each in by_seed.values()]
            average = statistics.stdev(averages) if len(averages) > 1 else 0.0
        return by_domain | {"average": average}
    return results["summary"][0][kind]


def _cell(values: Figures, column: str, spread: Figures | None = None, runs: int = 1) -> Value | str:
    if column not in values:
        return ""
    return Value(values[column], spread[column] if spread else None, runs)
