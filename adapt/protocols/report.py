"""A self-contained HTML report on runs and protocols: tables, figures, and the most confident errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from adapt.common.version import __version__
from adapt.evaluation import stored
from adapt.evaluation.scores import Figure, Scores
from adapt.protocols.gallery import Gallery, galleries
from adapt.protocols.plain_runs import is_run, mean_gain, names, nearest_the_mean, plain_table, pooled, read_run
from adapt.protocols.plots import DRAWN, compared_methods, svg
from adapt.protocols.run_page import THRESHOLD, RunPage, name_of, run_page
from adapt.protocols.run_protocol import Results
from adapt.protocols.table_formats import Cells
from adapt.protocols.tables import read_results, table


@dataclass(frozen=True)
class ProtocolPage:
    """The report content for one protocol, data set and backbone: a table of all results, and a plot if available."""

    name: str
    data: str
    cells: Cells
    picture: str


@dataclass(frozen=True)
class GroupPage:
    """The report content for runs that differ only by seed; `nearest` is the index of the run closest to the mean."""

    name: str
    runs: list[RunPage]
    nearest: int
    gain: float | None


@dataclass(frozen=True)
class RecommendationPage:
    """The report content for a comparison of methods: the data of recommendation.json, a plot, and image galleries."""

    name: str
    content: dict[str, object]
    figure: Figure
    picture: str
    galleries: list[Gallery]


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
    pages = [
        GroupPage(name, list(map(run_page, group)), group.index(nearest_the_mean(group)), mean_gain(group))
        for name, group in zip(names(groups), groups, strict=True)
    ]
    shown_protocols, cells = list(_protocol_pages(protocols)), plain_table(runs)
    gains = [-1.0 if page.gain is None else page.gain for page in pages]  # what was not measured comes last
    template = Environment(loader=PackageLoader("adapt.protocols", "."), autoescape=True).get_template("report.html")
    return template.render(
        protocols=shown_protocols,
        recommendations=list(_recommendations([run.path for run in runs])),
        cells=cells,
        several_seeds=any(
            "±" in cell for each in [cells, *(page.cells for page in shown_protocols)] for row in each for cell in row
        ),
        threshold=THRESHOLD,
        groups=pages,
        opened=max(range(len(pages)), key=lambda place: gains[place], default=None),
        version=__version__,
    )


def _protocol_pages(protocols: Sequence[Results]) -> Iterator[ProtocolPage]:
    groups: dict[tuple[str, str], list[Results]] = defaultdict(list)
    for results in protocols:
        recipe = results["recipe"]
        groups[results["protocol"], f"{recipe['data']['source']}, {recipe['backbone']}"].append(results)
    for (protocol, subject), members in groups.items():
        picture = svg(DRAWN[protocol](members)) if protocol in DRAWN else ""
        yield ProtocolPage(protocol.replace("_", " "), subject, table(members), picture)


def _recommendations(runs: Sequence[Path]) -> Iterator[RecommendationPage]:
    for run in runs:
        path = run / "recommendation.json"
        if path.is_file():
            content = stored.read(path, stored.Recommended, "recommendation")
            figure = Figure(**content["figure"]) if "figure" in content else Scores.compared_by
            rows = content["methods"]
            picture = svg(compared_methods(rows, content["alike"], figure)) if rows else ""
            yield RecommendationPage(name_of(run), content, figure, picture, list(galleries(run)))
