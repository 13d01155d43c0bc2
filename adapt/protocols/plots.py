"""The pictures of a report: curves with bands, base against new, how sure against how right."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from adapt.protocols.tables import Results, figure_of

COLOURS = 10  # that lines and dots take in turn
APART = 4  # points of the images that are answered, between two thresholds that are named
LEAST_SHARE = 0.03  # of the images that is answered, from which on the accuracy is drawn
DESCRIPTORS = 5  # of a class that are shown, the best
_INK = {True: "#1f77b4", False: "#d62728"}  # of right answers, of wrong ones
_plain_text = rc_context({"text.parse_math": False})  # names of classes and recipes may have dollars


@_plain_text
def few_shot_curves(results: Sequence[tuple[str, Results]]) -> Figure:
    """Mean accuracy, or mAP, by shots, a band of one standard deviation, the frozen model dashed."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for title, each in results:
        groups = sorted(each["summary"], key=lambda group: group["shots"])
        shots = [group["shots"] for group in groups]
        mean, spread = ([100 * group[kind]["test"] for group in groups] for kind in ("mean", "std"))
        (line,) = axes.plot(shots, mean, marker="o", label=title)
        low, high = ([m + sign * s for m, s in zip(mean, spread)] for sign in (-1, 1))
        axes.fill_between(shots, low, high, color=line.get_color(), alpha=0.15)
    frozen = 100 * results[0][1]["summary"][0]["zero_shot"]["test"]
    axes.axhline(frozen, color="gray", ls="--", label="zero-shot")
    every = sorted({group["shots"] for _, each in results for group in each["summary"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(count) for count in every])
    axes.set_xlabel("training images a class")
    axes.set_ylabel(f"test {figure_of(results[0][1]) or 'accuracy'}, %")
    axes.legend()
    return figure


@_plain_text
def base_against_new(results: Sequence[tuple[str, Results]]) -> Figure:
    """A small dot for each seed, a large one for the mean; dashed where the frozen model stands."""
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    frozen = results[0][1]["summary"][0]["zero_shot"]
    axes.axvline(100 * frozen["base"], color="gray", ls="--", lw=1)
    axes.axhline(100 * frozen["new"], color="gray", ls="--", lw=1, label="zero-shot")
    for place, (title, each) in enumerate(results):
        mean, marker = each["summary"][0]["mean"], "osD^v"[place // COLOURS % 5]
        dot = axes.scatter(100 * mean["base"], 100 * mean["new"], s=90, marker=marker, label=title, zorder=3)
        on_base, on_new = ([100 * row[half] for row in each["runs"]] for half in ("base", "new"))
        axes.scatter(on_base, on_new, s=14, marker=marker, color=dot.get_facecolor(), zorder=2)
    axes.margins(0.2)
    axes.set_xlabel("accuracy on base classes, %")
    axes.set_ylabel("accuracy on new classes, %")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@_plain_text
def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Accuracy by confidence, a line for each of `bins` by name; dots are as large as their bins have images."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="gray", ls="--", lw=1, label="as sure as right")
    most = max(each["images"] for found in bins.values() for each in found)
    for name, found in bins.items():
        sure, right = ([100 * each[kind] for each in found] for kind in ("confidence", "accuracy"))
        (line,) = axes.plot(sure, right, lw=1, label=name)
        axes.scatter(sure, right, s=[12 + 120 * each["images"] / most for each in found], color=line.get_color())
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("of these right, %")
    axes.legend(fontsize="small", loc="upper left")
    return figure


@_plain_text
def coverage_curve(points: Sequence[tuple[float, float]], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy by the share of the images that is answered, with a dot and its threshold for each of `rows`.

    Where hardly any image is answered, the accuracy is one of chance, and not drawn.
    """
    points = [point for point in points if point[0] >= LEAST_SHARE]
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    (line,) = axes.plot([100 * share for share, _ in points], [100 * right for _, right in points], lw=1.2)
    named = math.inf
    for row in sorted(rows, key=lambda row: -row["share"]):
        if row["share"] >= LEAST_SHARE:
            at = (100 * row["share"], 100 * row["accuracy"])
            axes.scatter(*at, s=18, color=line.get_color(), zorder=3)
            if at[0] < named - APART:
                axes.annotate(f"{row['threshold']:g}", at, (3, 5), textcoords="offset points", fontsize="small")
                named = at[0]
    axes.set_xlim(0, 108)
    axes.set_ylim(min(100 * right for _, right in points) - 5, 104)
    axes.set_xlabel("images that are answered, %")
    axes.set_ylabel("of these right, %")
    return figure


@_plain_text
def compared_methods(rows: Sequence[Mapping[str, Any]], alike: Sequence[str]) -> Figure:
    """Accuracies by cross-validation with a standard error to either side; dark those that are `alike` the best."""
    figure = Figure(figsize=(6.4, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        colour = "#1f77b4" if row["method"] in alike else "#9bb8d3"
        axes.errorbar(100 * row["accuracy"], place, xerr=100 * row["error"], fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
    axes.set_xlabel("accuracy by cross-validation, %")
    axes.grid(axis="x", alpha=0.3)
    return figure


@_plain_text
def descriptor_bars(examples: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> Figure:
    """For each image what it was taken for, right or wrong, and its likeness to that class's best descriptors.

    `examples` are those of explanations.json; an image may be None, where it is gone.
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
        bars.set_title(
            f"{chosen['name']}" + ("" if right else f", in fact {example['actual']}"), fontsize=9, loc="left"
        )
        bars.tick_params(labelsize=7)
        bars.set_xlim(right=1.05 * most)
    rows[-1, 1].set_xlabel("cosine of the image with the descriptor", fontsize=8)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an element that stands in a page; text stays text."""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "adapt", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    page = text.getvalue()
    return page[page.index("<svg") :]
