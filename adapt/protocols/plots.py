"""The figures of a report: few-shot curves, base against new classes, calibration, coverage, explanations."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from adapt.common.disk import replacing
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.evaluation import scores
from adapt.evaluation.learning_curve import LearningCurve
from adapt.protocols.protocol import Results
from adapt.protocols.tables import Curve, curves, figure_of, numbered, several_sets

PANELS = 4  # beside each other

COLOURS = 10  # in the cycle of lines and dots
APART = 4  # percentage points of coverage between two labelled thresholds
LEAST_SHARE = 0.03  # of the images classified, below which the accuracy is not drawn
DESCRIPTORS = 5  # shown for each class, the best
_INK = {True: "#1f77b4", False: "#d62728"}  # right and wrong predictions
_plain_text = rc_context({"text.parse_math": False})  # names of classes and recipes may contain dollar signs


def _panel(width: float, height: float, across: str, up: str) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches and its only panel, whose axes are called `across` and `up`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    return figure, axes


@_plain_text
def few_shot_curves(results: Sequence[Results]) -> Figure:
    """Draw mean accuracy (or mAP) over shots, with a band of one standard deviation and the dashed baseline.

    Results on several data sets get a panel for each data set, after one for the average. Raises AdaptError for results
    that do not share a table.
    """
    drawn = curves(results)
    columns = min(len(drawn), PANELS)
    rows = math.ceil(len(drawn) / columns)
    size = (6.4, 4.0) if len(drawn) == 1 else (1 + 3.2 * columns, 0.8 + 2.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (source, lines) in zip(panels, drawn.items()):
        _few_shot_panel(axes, lines)
        if len(drawn) > 1:
            axes.set_title(source, fontsize="medium")
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    figure.supxlabel("training images for each class", fontsize="medium")
    figure.supylabel(f"test {figure_of(results[0]) or 'accuracy'}, %", fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure


def _few_shot_panel(axes: Axes, lines: Mapping[str, Curve]) -> None:
    baseline, *methods = lines
    for title in methods:
        shots, values = list(lines[title]), list(lines[title].values())
        mean, spread = [100 * value.mean for value in values], [100 * (value.std or 0) for value in values]
        (line,) = axes.plot(shots, mean, marker="o", markersize=4, label=title)
        low, high = ([m + sign * s for m, s in zip(mean, spread)] for sign in (-1, 1))
        axes.fill_between(shots, low, high, color=line.get_color(), alpha=0.15)
    frozen = [100 * value.mean for value in lines[baseline].values()]  # of class means, it depends on the shots
    axes.plot(list(lines[baseline]), frozen, color="gray", ls="--", label=baseline)
    every = sorted({count for curve in lines.values() for count in curve})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(count) for count in every])


@_plain_text
def base_against_new(results: Sequence[Results]) -> Figure:
    """Draw accuracy on new classes over accuracy on base classes, with dashed lines for zero-shot accuracy.

    Each result has a small dot for each seed, and a large dot for the mean.
    """
    figure, axes = _panel(6.6, 4.2, "accuracy on base classes, %", "accuracy on new classes, %")
    frozen = results[0]["summary"][0]["zero_shot"]
    axes.axvline(100 * frozen["base"], color="gray", ls="--", lw=1)
    axes.axhline(100 * frozen["new"], color="gray", ls="--", lw=1, label="zero-shot")
    for place, (title, each) in enumerate(zip(numbered(results), results, strict=True)):
        mean, marker = each["summary"][0]["mean"], "osD^v"[place // COLOURS % 5]
        dot = axes.scatter(100 * mean["base"], 100 * mean["new"], s=90, marker=marker, label=title, zorder=3)
        on_base, on_new = ([100 * row[half] for row in each["runs"]] for half in ("base", "new"))
        axes.scatter(on_base, on_new, s=14, marker=marker, color=dot.get_facecolor(), zorder=2)
    axes.margins(0.2)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@_plain_text
def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw accuracy over confidence, with a line for each title in `bins` and dots sized by the number of images."""
    figure, axes = _panel(4.6, 4.2, "confidence, %", "accuracy, %")
    axes.plot([0, 100], [0, 100], color="gray", ls="--", lw=1, label="perfect calibration")
    most = max(each["images"] for curve in bins.values() for each in curve)
    for name, curve in bins.items():
        confidence, accuracy = ([100 * each[kind] for each in curve] for kind in ("confidence", "accuracy"))
        (line,) = axes.plot(confidence, accuracy, lw=1, label=name)
        sizes = [12 + 120 * each["images"] / most for each in curve]
        axes.scatter(confidence, accuracy, s=sizes, color=line.get_color())
    axes.set(xlim=(0, 102), ylim=(0, 102))
    axes.legend(fontsize="small", loc="upper left")
    return figure


@_plain_text
def coverage_curve(points: Sequence[tuple[float, float]], rows: Sequence[JsonObject]) -> Figure:
    """Draw accuracy over coverage (the fraction of images classified), with a dot for each threshold in `rows`.

    Accuracies at a coverage below 3 % are not drawn, because they are not reliable.
    """
    points = [point for point in points if point[0] >= LEAST_SHARE]
    figure, axes = _panel(4.6, 4.2, "images classified, %", "accuracy, %")
    (line,) = axes.plot([100 * share for share, _ in points], [100 * right for _, right in points], lw=1.2)
    labelled = math.inf
    for row in sorted(rows, key=lambda row: -row["share"]):
        if row["share"] >= LEAST_SHARE:
            at = (100 * row["share"], 100 * row["accuracy"])
            axes.scatter(*at, s=18, color=line.get_color(), zorder=3)
            if at[0] < labelled - APART:
                axes.annotate(f"{row['threshold']:g}", at, (3, 5), textcoords="offset points", fontsize="small")
                labelled = at[0]
    axes.set(xlim=(0, 108), ylim=(min(100 * right for _, right in points) - 5, 104))
    return figure


@_plain_text
def compared_methods(rows: Sequence[JsonObject], alike: Sequence[str], by: scores.Figure) -> Figure:
    """Draw each method's cross-validated figure with one standard error, in a dark colour for methods in `alike`."""
    figure, axes = _panel(6.4, 1 + 0.28 * len(rows), f"{by.title} by cross-validation" + ", %" * by.share, "")
    for place, row in enumerate(reversed(rows)):
        colour = "#1f77b4" if row["method"] in alike else "#9bb8d3"
        value, error = (row[key] * (100 if by.share else 1) for key in (by.name, "error"))
        axes.errorbar(value, place, xerr=error, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
    axes.grid(axis="x", alpha=0.3)
    return figure


@_plain_text
def learning_curve(curve: LearningCurve) -> Figure:
    """Draw the points of a learning curve with their band, and a star where it reaches the target, if that is known."""
    figure, axes = _panel(6.4, 3.4, "training images for each class", "test accuracy, %")
    images = [point.images for point in curve.points]
    mean, low, high = ([100 * getattr(point, end) for point in curve.points] for end in ("accuracy", "low", "high"))
    (line,) = axes.plot(images, mean, marker="o", markersize=4)
    axes.fill_between(images, low, high, color=line.get_color(), alpha=0.15)
    if curve.labels:
        images.append(images[-1] + curve.labels)
        axes.plot(images[-2:], [mean[-1], 100 * curve.target], color=line.get_color(), ls="--")
        axes.scatter(images[-1], 100 * curve.target, s=120, marker="*", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(images, [f"{count:.3g}" for count in images])
    axes.minorticks_off()
    return figure


@_plain_text
def descriptor_bars(examples: Sequence[JsonObject], images: Sequence[Image.Image | None]) -> Figure:
    """Draw each image with its predicted class, and bars for the cosines to the best descriptors of the class.

    Bars are blue for right predictions and red for wrong predictions. `examples` are from explanations.json, and an
    image is None if the file is missing.
    """
    figure = Figure(figsize=(7.4, 1.75 * len(examples)), layout="constrained")
    rows = figure.subplots(len(examples), 2, width_ratios=[1, 3], squeeze=False)
    most = max(each["reasons"][0]["descriptors"][0]["cosine"] for each in examples)
    for (picture, bars), example, image in zip(rows, examples, images, strict=True):
        picture.axis("off")
        if image is not None:
            picture.imshow(image)
        chosen = example["reasons"][0]
        best = chosen["descriptors"][:DESCRIPTORS][::-1]
        right = chosen["name"] == example["actual"]
        bars.barh([each["text"] for each in best], [each["cosine"] for each in best], color=_INK[right])
        title = chosen["name"] + ("" if right else f", actually {example['actual']}")
        bars.set_title(title, fontsize=9, loc="left")
        bars.tick_params(labelsize=7)
        bars.set_xlim(right=1.05 * most)
    rows[-1, 1].set_xlabel("cosine of the image with the descriptor", fontsize=8)
    return figure


DRAWN = {"few_shot": few_shot_curves, "base_to_new": base_against_new}


def draw(results: Sequence[Results], path: Path) -> None:
    """Draw results of a protocol to a file, whose suffix says the format, such as png or svg.

    Raises AdaptError if the protocol has no picture, or base-to-new results are of several data sets.
    """
    protocol = results[0]["protocol"]
    if protocol not in DRAWN:
        raise AdaptError(f"there is no picture of {protocol} results: give few-shot or base-to-new results")
    if protocol == "base_to_new" and several_sets(results):
        raise AdaptError("base-to-new results are drawn for one data set: give the results of one")
    with replacing(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "adapt"}):
        DRAWN[protocol](results).savefig(temporary, dpi=200, format=path.suffix.removeprefix("."))


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element for an HTML page, in which text remains text instead of paths."""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "adapt", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    page = text.getvalue()
    return page[page.index("<svg") :]
