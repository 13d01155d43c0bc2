"""One self-contained HTML page of runs and protocols: tables, pictures, and the errors worth looking at."""

from __future__ import annotations

import base64
import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from adapt import __version__
from adapt.cells import unguarded
from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.protocols.tables import Cells, Results, read_results, table, titles

WORST_ERRORS, THUMBNAIL, WORST_CLASSES = 12, 96, 10


@dataclass(frozen=True)
class Error:
    """A wrong prediction, the image as JPEG in base64 or None where it is gone."""

    actual: str
    predicted: str
    confidence: float
    path: str
    image: str | None


@dataclass(frozen=True)
class RunPage:
    """What the page says of one run directory."""

    name: str
    metrics: dict[str, Any]
    confusion: str
    classes_shown: str
    worst_classes: list[tuple[str, float]]
    errors: list[Error]

    @property
    def predictions(self) -> bool:
        return bool(self.confusion)


@dataclass(frozen=True)
class ProtocolPage:
    """One protocol on one data set: a table of all results, and a picture where the protocol has one."""

    name: str
    data: str
    cells: Cells
    picture: str


def report(paths: Sequence[Path]) -> str:
    """The page for run directories, and for folders that protocols wrote, with the runs inside.

    Raises AdaptError for a path that is neither.
    """
    protocols: list[tuple[Path, Results]] = []
    runs: list[Path] = []
    for path in paths:
        if (path / "metrics.json").is_file():
            runs.append(path)
            continue
        for results in read_results(path):
            protocols.append((path, results))
            runs += [path / row["run"] for row in results["runs"]]
    runs = list(dict.fromkeys(runs))
    template = Environment(loader=PackageLoader("adapt.protocols", "."), autoescape=True).get_template("report.html")
    pages = [_run_page(run) for run in runs]
    return template.render(protocols=list(_protocol_pages(protocols)), runs=pages, version=__version__)


def _protocol_pages(found: Sequence[tuple[Path, Results]]) -> Iterator[ProtocolPage]:
    from adapt.protocols.plots import base_against_new, few_shot_curves, svg

    draw = {"few_shot": few_shot_curves, "base_to_new": base_against_new}
    groups: dict[tuple[str, str], list[Results]] = defaultdict(list)
    for _, results in found:
        recipe = results["recipe"]
        groups[results["protocol"], f"{recipe['data']['source']}, {recipe['backbone']}"].append(results)
    for (protocol, subject), members in groups.items():
        picture = svg(draw[protocol](list(zip(titles(members), members)))) if protocol in draw else ""
        yield ProtocolPage(protocol.replace("_", " "), subject, table(members), picture)


def _run_page(run: Path) -> RunPage:
    from adapt.protocols.plots import confusion_matrix, svg

    metrics = stored.read(run / "metrics.json", stored.Metrics, "metrics of a finished run")
    rows = _predictions(run)
    confusion, shown = "", ""
    if rows:
        figure, shown = confusion_matrix(rows)
        confusion = svg(figure)
    by_class: dict[str, float] = metrics.get("adapted", {}).get("by_class", {})
    worst = sorted(by_class.items(), key=lambda pair: pair[1])[:WORST_CLASSES]
    return RunPage(f"{run.parent.name}/{run.name}", metrics, confusion, shown, worst, _worst_errors(rows))


def _predictions(run: Path) -> list[dict[str, str]]:
    file = run / "predictions.csv"
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [{key: unguarded(cell) for key, cell in row.items()} for row in reader]
        if missing := {"path", "class", "predicted", "confidence"}.difference(reader.fieldnames or ()):
            raise ValueError(f"it has no column {min(missing)}")
        for row in rows:
            float(row["confidence"])
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise AdaptError(f"{file} holds no predictions of a run: {error}") from error
    return rows


def _worst_errors(rows: Sequence[dict[str, str]]) -> list[Error]:
    """The wrong predictions of which the model was most sure."""
    wrong = [row for row in rows if row["class"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    return [
        Error(row["class"], row["predicted"], float(row["confidence"]), row["path"], _thumbnail(row["path"]))
        for row in wrong[:WORST_ERRORS]
    ]


def _thumbnail(path: str) -> str | None:
    from adapt.data.decoding.images import open_image

    try:
        image = open_image(path)
    except AdaptError:
        return None  # moved since the run; the page says so
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode("ascii")
