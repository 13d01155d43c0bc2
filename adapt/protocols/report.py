"""A self-contained HTML report on runs and protocols: tables, figures, and the most confident errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from adapt.common.plain import JsonObject
from adapt.common.version import __version__
from adapt.evaluation import stored
from adapt.evaluation.scores import Figure, Scores
from adapt.protocols.plain_runs import is_run, mean_gain, names, nearest_the_mean, plain_table, pooled, read_run
from adapt.protocols.plots import DRAWN, compared_methods, svg
from adapt.protocols.run_page import THRESHOLD, galleries, name_of, run_page
from adapt.protocols.run_protocol import Results
from adapt.protocols.tables import read_results, table

_RECOMMENDATION = "recommendation.json"


def report(paths: Sequence[Path]) -> str:
    """Return an HTML report on `paths`, each a run directory or a folder with the results and runs of protocols.

    Raises AdaptError for a path that is neither a run directory nor a folder with results of a protocol.
    """
    protocols: list[Results] = []
    folders: list[Path] = []
    for path in paths:
        if is_run(path):
            folders.append(path)
            continue
        for results in read_results(path):
            protocols.append(results)
            folders += [path / row["run"] for row in results["runs"]]
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    groups = pooled(runs)
    gains = list(map(mean_gain, groups))
    pages = [
        {"name": name, "runs": list(map(run_page, group)), "nearest": group.index(nearest_the_mean(group)), "gain": own}
        for name, group, own in zip(names(groups), groups, gains, strict=True)
    ]
    order = [-1.0 if gain is None else gain for gain in gains]  # what was not measured comes last
    shown_protocols, cells = _protocols(protocols), plain_table(runs)
    template = Environment(loader=PackageLoader("adapt.protocols", "."), autoescape=True).get_template("report.html")
    return template.render(
        protocols=shown_protocols,
        recommendations=[_recommendation(run.path) for run in runs if (run.path / _RECOMMENDATION).is_file()],
        cells=cells,
        several_seeds=any(
            "±" in cell
            for each in [cells, *(page["cells"] for page in shown_protocols)]
            for row in each
            for cell in row
        ),
        threshold=THRESHOLD,
        groups=pages,
        opened=max(range(len(pages)), key=lambda place: order[place], default=None),
        version=__version__,
    )


def _protocols(protocols: Sequence[Results]) -> list[JsonObject]:
    """Return for each protocol, data set and backbone a table of all results, and a plot if there is one."""
    groups: dict[tuple[str, str], list[Results]] = defaultdict(list)
    for results in protocols:
        recipe = results["recipe"]
        groups[results["protocol"], f"{recipe['data']['source']}, {recipe['backbone']}"].append(results)
    return [
        {
            "name": protocol.replace("_", " "),
            "data": subject,
            "cells": table(members),
            "picture": svg(DRAWN[protocol](members)) if protocol in DRAWN else "",
        }
        for (protocol, subject), members in groups.items()
    ]


def _recommendation(run: Path) -> JsonObject:
    """Return a comparison of methods: the content of recommendation.json, a plot, and galleries of images."""
    content = stored.read(run / _RECOMMENDATION, stored.Recommended, "recommendation")
    figure = Figure(**content["figure"]) if "figure" in content else Scores.compared_by
    picture = svg(compared_methods(content["methods"], content["alike"], figure)) if content["methods"] else ""
    return {
        "name": name_of(run),
        "content": content,
        "figure": figure,
        "picture": picture,
        "galleries": list(galleries(run)),
    }
