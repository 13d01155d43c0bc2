"""A self-contained HTML report on runs and protocols: tables, figures, and the most confident errors.

The section on a run has its curves, errors, confusions and calibration, and how it was made. Galleries show thumbnails
of the images in a run's lists, such as duplicates.csv, with their classes.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader, Template
from PIL import Image, ImageDraw
from pydantic import TypeAdapter

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.common.shown import shown, unguarded
from adapt.common.version import __version__
from adapt.data.decoding.images import open_image
from adapt.evaluation import stored
from adapt.evaluation.boxes import HALF
from adapt.evaluation.intervals import legend
from adapt.evaluation.learning_curve import LearningCurve
from adapt.evaluation.scores import Figure, Scores, by_threshold, calibration_error, coverage_and_accuracy, reliability
from adapt.formats.adapter import NAME, read_header
from adapt.protocols import plots
from adapt.protocols.plain_runs import (
    PlainRun,
    is_run,
    mean_gain,
    nearest_the_mean,
    plain_table,
    pooled,
    read_run,
    titles,
)
from adapt.protocols.plots import DRAWN, compared_methods, coverage_curve, descriptor_bars, reliability_diagram, svg
from adapt.protocols.protocol import Results
from adapt.protocols.tables import Cells, note_other_images, read_results, table
from adapt.training.result import Result, read_history

_RECOMMENDATION = "recommendation.json"
_Row = dict[str, str]


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
    note_other_images(protocols)
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    groups = pooled(runs)
    gains = list(map(mean_gain, groups))
    pages = [
        {"name": name, "runs": list(map(run_page, group)), "nearest": group.index(nearest_the_mean(group)), "gain": own}
        for name, group, own in zip(titles([group[0].recipe for group in groups]), groups, gains, strict=True)
    ]
    order = [-1.0 if gain is None else gain for gain in gains]  # what was not measured comes last
    shown_protocols, cells = _protocols(protocols), plain_table(runs)
    tables: list[Cells] = [cells, *(page["cells"] for page in shown_protocols)]
    return _template().render(
        protocols=shown_protocols,
        recommendations=[_recommendation(run.path) for run in runs if (run.path / _RECOMMENDATION).is_file()],
        cells=cells,
        several_seeds=any("±" in str(cell) for table in tables for row in table for cell in row),
        threshold=THRESHOLD,
        groups=pages,
        opened=max(range(len(pages)), key=lambda place: order[place], default=None),
        version=__version__,
    )


def _protocols(protocols: Sequence[Results]) -> list[JsonObject]:
    """Return for each protocol, data set and backbone a table of all results, and a plot if there is one."""
    subject_of = "{0[recipe][data][source]}, {0[recipe][backbone]}".format
    groups = grouped(((results["protocol"], subject_of(results)), results) for results in protocols)
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
    curve = TypeAdapter(LearningCurve | None).validate_python(content.get("learning_curve"))
    return {
        "name": name_of(run),
        "content": content,
        "figure": figure,
        "picture": picture,
        "curve": curve,
        "curve_picture": svg(plots.learning_curve(curve)) if curve else "",
        "galleries": list(galleries(run)),
    }


THUMBNAIL = 96  # pixels of the longer edge
MOST_PICTURES = 24  # of one list


@dataclass(frozen=True)
class Picture:
    """An image of a gallery: path, file name, caption, and thumbnail as base64 JPEG (None if the file is missing)."""

    path: str
    name: str
    caption: str
    image: str | None


@dataclass(frozen=True)
class Gallery:
    """A gallery of an image list: title, file, number of lines, and one or two pictures for each of the first lines."""

    title: str
    file: str
    lines: int
    entries: list[list[Picture]]


# by file: the title of its gallery, and the columns with paths of images, each with its caption made of other columns
_LISTS = {
    "contradictions.csv": (
        "Near duplicates with different classes",
        {"path": "{class}", "other_path": "{other_class}"},
    ),
    "suspects.csv": (
        "Training images that look like another class",
        {"path": "labelled {class}, looks like {likelier}"},
    ),
    "duplicates.csv": (
        "Test and validation images that look like a training image",
        {"path": "{part}: {class}", "train_path": "train: {train_class}"},
    ),
    "confused.csv": (
        "Images of the most often confused classes",
        {"path": "{class}, classified as {predicted}"},
    ),
}


def difference_report(title: str, lines: Sequence[str], flips: Sequence[Mapping[str, str]], turned: bool) -> str:
    """Return an HTML page with `lines` of text and the images that two adapters answer differently (`flips`).

    `turned` says whether the images are turned upright by EXIF.
    """
    entries = [
        [_picture(row["path"], f"{row['class']}: {row['first']} → {row['second']}", turned)]
        for row in flips[:MOST_PICTURES]
    ]
    title_of = "The true class: the answer of the first → of the second"
    galleries = [Gallery(title_of, "the output of --json", len(flips), entries)]
    about = {"title": title, "lines": lines, "galleries": galleries if entries else []}
    return _template().render(difference=about, version=__version__)


def _template() -> Template:
    return Environment(loader=PackageLoader("adapt.protocols", "."), autoescape=True).get_template("report.html")


def learned_turned(run: Path) -> bool:
    """Return whether the run's adapter was trained on images that were turned upright by EXIF."""
    adapter = run / NAME
    return adapter.is_file() and bool(read_header(adapter).preprocess["turned"])


def galleries(run: Path) -> Iterator[Gallery]:
    """Yield a gallery for each non-empty list of images in a run directory. Raises AdaptError if a list is damaged."""
    turned = learned_turned(run)
    for file, (title, captions) in _LISTS.items():
        columns = {*captions, *re.findall(r"\{(\w+)\}", " ".join(captions.values()))}
        if rows := read_rows(run / file, columns, "list of images"):
            first = rows[: MOST_PICTURES // len(captions)]
            entries = [
                [_picture(row[path], caption.format_map(row), turned) for path, caption in captions.items()]
                for row in first
            ]
            yield Gallery(title, file, len(rows), entries)


def read_rows(file: Path, columns: Collection[str], what: str) -> list[_Row]:
    """Read the rows of a run's CSV file, with formulas unescaped; return an empty list for a missing file.

    Raises AdaptError if the file is damaged or a column in `columns` is missing. `what` describes the content.
    """
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [{key: unguarded(cell) for key, cell in row.items()} for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise AdaptError(f"{file} holds no {what}: {error}") from error
    if missing := set(columns).difference(reader.fieldnames or ()):
        raise AdaptError(f"{file} holds no {what}: the column {min(missing)} is missing")
    return rows


def small_image(path: str, turned: bool, boxes: Mapping[str, str] = {}) -> Image.Image | None:
    """Return an image at thumbnail size, rotated upright by EXIF if `turned`; None if the file cannot be read.

    `boxes` are drawn into it: JSON of `NamedBox.plain` by colour. Other texts are passed over.
    """
    try:
        image = open_image(path, turned=turned)
    except AdaptError:
        return None  # moved since the run; the page says so
    for colour, text in boxes.items():
        with suppress(ValueError, TypeError, LookupError):  # an answer that could not be read stays as it was
            for each in plain.parse(text):
                ImageDraw.Draw(image).rectangle(each["bbox"], outline=colour, width=1 + max(image.size) // THUMBNAIL)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _picture(path: str, caption: str, turned: bool, boxes: Mapping[str, str] = {}) -> Picture:
    """Return an image of a gallery, with a thumbnail of `small_image`."""
    data, image = io.BytesIO(), small_image(path, turned, boxes)
    if image is not None:
        image.save(data, "JPEG", quality=80)
    thumbnail = base64.b64encode(data.getvalue()).decode("ascii") or None
    return Picture(path, shown(Path(path).name), caption, thumbnail)


MOST_CLASSES = 30  # a larger table is hard to read


@dataclass(frozen=True)
class Confusions:
    """A confusion matrix with the displayed classes, one row of numbers of images for each class, and a caption.

    `elsewhere` contains, for each row, the number of images that were classified as a class that is not displayed. The
    list is empty if all classes are displayed.
    """

    classes: list[str]
    rows: list[list[int]]
    elsewhere: list[int]
    caption: str


def confusions(rows: Sequence[dict[str, str]]) -> Confusions:
    """Return the confusion matrix for the rows of predictions.csv, limited to the most often confused classes."""
    counts = Counter((row["class"], row["predicted"]) for row in rows)
    of_class = Counter(row["class"] for row in rows)
    every = sorted({name for pair in counts for name in pair})
    classes, caption = every, f"all {len(every)} classes"
    if len(every) > MOST_CLASSES:
        classes = _most_confused(counts)
        caption = f"the {len(classes)} of {len(every)} classes that are most often confused"
        if not classes:
            classes = every[:MOST_CLASSES]
            caption = f"{len(classes)} of {len(every)} classes, without any confusion"
    numbers = [[counts[actual, name] for name in classes] for actual in classes]
    hidden = [of_class[actual] - sum(row) for actual, row in zip(classes, numbers)]
    return Confusions(classes, numbers, hidden if len(classes) < len(every) else [], caption)


def _most_confused(counts: Counter[tuple[str, str]]) -> list[str]:
    """Return the classes of the most often confused pairs, up to the limit of a displayed confusion matrix."""
    pairs: Counter[tuple[str, str]] = Counter()
    for (actual, predicted), images in counts.items():
        if actual != predicted:
            pairs[min(actual, predicted), max(actual, predicted)] += images
    chosen: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        if len(chosen.union(pair)) <= MOST_CLASSES:
            chosen.update(pair)
    return sorted(chosen)


WORST_ERRORS, WORST_CLASSES = 12, 10
THRESHOLD = 0.6  # the one that the text mentions


def run_page(run: PlainRun) -> JsonObject:
    """Return the report content for a finished run: plots are SVG text, or "" if there is nothing to draw.

    Raises AdaptError if the run's files are damaged.
    """
    rows, metrics = _predictions(run.path), run.metrics
    log, adapted = run.path / "log.jsonl", metrics.get("adapted", {})
    history = read_history(log) if log.is_file() else []
    by_class: dict[str, float] = adapted.get("by_class", {})
    class_figure = adapted.get("class_figure", Scores.class_figure)
    # a confusion matrix needs one class for each image
    of_one_class = bool(rows and by_class) and class_figure == Scores.class_figure
    of_probabilities = of_one_class and "calibration_error" in adapted
    thresholds, coverage, diagram = list[JsonObject](), "", ""
    if of_probabilities:
        confidences = [float(row["confidence"]) for row in rows], [row["class"] == row["predicted"] for row in rows]
        groups = [row.get("group", str(number)) for number, row in enumerate(rows)]
        thresholds = by_threshold(*confidences, groups)
        coverage = svg(coverage_curve(coverage_and_accuracy(*confidences), thresholds))
        diagram = _reliability(reliability(*confidences), metrics)
    return {
        "name": name_of(run.path),
        "result": run,
        "command": shlex.join(["adapt", "train", str(run.path / "recipe.yaml"), f"--out={run.path}-again"]),
        "made_with": _made_with(run.path, metrics.get("device")),
        "curves": svg(Result(metrics, history, None).plot()) if history else "",
        "confusions": confusions(rows) if of_one_class else None,
        "reliability": diagram,
        "thresholds": thresholds,
        "coverage": coverage,
        "class_figure": class_figure,
        "worst_classes": sorted(by_class.items(), key=lambda pair: pair[1])[:WORST_CLASSES],
        "class_intervals": adapted.get("by_class_intervals", {}),
        "legend": legend(adapted["images"], adapted.get("groups", adapted["images"])) if "intervals" in adapted else "",
        "boxes": any("iou" in row for row in rows),
        "errors": _worst_errors(rows, learned_turned(run.path)),
        "explained": _explained(run.path),
    }


def name_of(path: Path) -> str:
    """Return a run's name for reports, which consists of parent folder and folder, such as `runs/first`."""
    absolute = Path(os.path.abspath(path))
    return shown(f"{absolute.parent.name}/{absolute.name}".lstrip("/"))


def _made_with(run: Path, device: str | None) -> str:
    """Return the machine and the library versions that made a run, on one line, or "" if unknown."""
    path = run / "environment.json"
    if not path.is_file():
        return ""
    try:
        environment = plain.parse(path.read_bytes())
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
        threads = f"{environment['threads']} CPU thread{'s' * (environment['threads'] != 1)}"
        processor = threads if device in (None, "cpu") else device
        return shown(f"{processor}; Python {environment['python']}, {versions}; {environment['platform']}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdaptError(f"{path} holds no environment of a run: {error!r}") from error


def _reliability(after: Sequence[JsonObject], metrics: JsonObject) -> str:
    calibration = metrics.get("calibration", {})
    bins, name = {}, "as trained"
    if "before" in calibration:
        bins[f"{name}, error {100 * calibration['error_before']:.1f} %"] = calibration["before"]
        name = "calibrated"
    bins[f"{name}, error {100 * calibration_error(after):.1f} %"] = after
    return svg(reliability_diagram(bins))


def _predictions(run: Path) -> list[dict[str, str]]:
    file, what = run / "predictions.csv", "predictions of a run"
    rows = read_rows(file, ("path", "class", "predicted", "confidence"), what)
    try:
        for row in rows:
            for column in ("confidence", "iou"):
                if not 0 <= float(row.get(column, 0)) <= 1:
                    raise ValueError(f"a cell of {column} is {row[column]}; expected a number from 0 to 1")
    except (ValueError, TypeError) as error:
        raise AdaptError(f"{file} holds no {what}: {error}") from error
    return rows


def _explained(run: Path) -> str:
    """Return a figure (SVG) of predictions with the descriptors that explain them; "" if there are no explanations."""
    path = run / "explanations.json"
    if not path.is_file():
        return ""
    examples = stored.read(path, stored.Explained, "explanations")
    turned = learned_turned(run)
    return svg(descriptor_bars(examples, [small_image(each["path"], turned) for each in examples])) if examples else ""


def _worst_errors(rows: Sequence[dict[str, str]], turned: bool) -> list[JsonObject]:
    """Return the wrong predictions with the highest confidence in per cent; of equal ones, classes take turns.

    Wrong boxes overlap by less than a half; they are drawn in red, and the true ones in green.
    """
    wrong = [row for row in rows if (float(row["iou"]) < HALF if "iou" in row else row["class"] != row["predicted"])]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    turns: defaultdict[tuple[int, str], Iterator[int]] = defaultdict(count)
    wrong.sort(
        key=lambda row: (-(percent := round(100 * float(row["confidence"]))), next(turns[percent, row["class"]]))
    )
    return [
        {
            "actual": row["class"],
            "predicted": row["predicted"],
            "confidence": float(row["confidence"]),
            "picture": _picture(
                row["path"], "", turned, {"lime": row["class"], "red": row["predicted"]} if "iou" in row else {}
            ),
        }
        for row in wrong[:WORST_ERRORS]
    ]
