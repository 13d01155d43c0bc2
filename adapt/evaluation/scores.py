"""Predictions of a classifier on a list of images, and the figures and standard errors computed from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.evaluation import intervals
from adapt.evaluation.intervals import Interval

if TYPE_CHECKING:
    from adapt.data.item import Item


CALIBRATION_BINS = 15
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of confidence, above which a model answers


class Figure(NamedTuple):
    """The figure by which methods are compared: a share in [0, 1], or an error in the unit of the data's numbers.

    `beside` has the titles of further figures that are shown beside it, by name.
    """

    name: str
    title: str
    share: bool = True
    beside: dict[str, str] = {}  # noqa: RUF012

    @property
    def unit(self) -> str:
        """The unit that is written behind a value of the figure, such as `% accuracy`."""
        return "% " * self.share + self.title

    @property
    def heading(self) -> str:
        """The title, with a capital letter if it is a word."""
        return self.title.capitalize() if self.title.islower() else self.title

    def text(self, value: float) -> str:
        """Return a value of the figure, or a difference of two, as text without its unit."""
        return f"{100 * value:.1f}" if self.share else f"{value:.4g}"


@dataclass(frozen=True)
class Scores:
    """Predictions for a list of images: the path, true class, predicted class and confidence of each image.

    `groups` are the groups of the images, such as patients; without them, all images are independent.
    """

    paths: tuple[str, ...]
    actual: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: tuple[float, ...]
    groups: tuple[str, ...] = ()

    main: ClassVar[str] = "accuracy"
    """The figure that tables of runs show, a share."""
    main_title: ClassVar[str] = "accuracy"
    """The title of the main figure in tables."""
    class_figure: ClassVar[str] = "recall"
    """The name of the figure in `by_class`."""
    compared_by: ClassVar[Figure] = Figure("accuracy", "accuracy")
    """The figure by which `recommend` compares methods."""
    has_classes: ClassVar[bool] = True
    """Whether answers are of a few classes; otherwise every answer is a class of its own."""
    has_probabilities: ClassVar[bool] = True
    """Whether `confidence` is the probability of an answer, to which a threshold can apply."""

    @property
    def images(self) -> int:
        return len(self.actual)

    @property
    def kept_with(self) -> tuple[str, ...]:
        """The group of each image, or the image's number if all are independent."""
        return self.groups or tuple(map(str, range(self.images)))

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(actual == predicted for actual, predicted in zip(self.actual, self.predicted))

    @property
    def merits(self) -> Tensor:
        """A value of each item `(n,)`, more for better answers, whose mean is the figure `compared_by` or minus it."""
        return torch.tensor(self.right)

    @property
    def accuracy(self) -> float:
        """The share of correct predictions among all images, in [0, 1], as in papers (not averaged over classes)."""
        return sum(self.right) / self.images

    @property
    def by_class(self) -> dict[str, float]:
        """The recall, in [0, 1], of each class that has images."""
        right = grouped(zip(self.actual, self.right, strict=True))
        return {name: sum(hits) / len(hits) for name, hits in sorted(right.items())}

    @property
    def by_class_intervals(self) -> dict[str, Interval]:
        """The intervals at 95 % of the values of `by_class` that are shares of images."""
        of_class = grouped((name, place) for place, name in enumerate(self.actual))
        right, groups = torch.tensor(self.right), self.kept_with
        return {
            name: intervals.of_share(right[places], [groups[place] for place in places])
            for name, places in sorted(of_class.items())
        }

    @property
    def mean_class_accuracy(self) -> float:
        """The balanced accuracy, which is the mean recall over classes, in [0, 1]; without classes, the accuracy."""
        if not self.has_classes:
            return self.accuracy
        return sum(self.by_class.values()) / len(self.by_class)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, in [0, 1], over 15 bins of equal width (Guo et al., ICML 2017)."""
        return calibration_error(self.reliability())

    def reliability(self) -> list[dict[str, float]]:
        """Return the number of images, the mean confidence and the accuracy for each non-empty confidence bin."""
        return reliability(self.confidence, self.right)

    def figures(self) -> JsonObject:
        """Return the few metrics that are saved in metrics.json and in the header of an adapter file."""
        own = {name: getattr(self, name) for name in ("main", "main_title")}
        return {name: value for name, value in own.items() if value != getattr(Scores, name)} | {
            "accuracy": self.accuracy,
            "images": self.images,
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
        }

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The intervals at 95 % of the figures that have one, by the name of the figure."""
        right = torch.tensor(self.right)
        found = {"accuracy": intervals.of_share(right, self.kept_with)}
        if self.has_classes:
            found["mean_class_accuracy"] = intervals.of_balanced(right, self.actual, self.kept_with)
        return found

    def reported(self) -> JsonObject:
        """Return the `figures` with their intervals and the number of independent groups."""
        told = {name: [*interval] for name, interval in self.intervals.items()}
        return self.figures() | {"intervals": told, "groups": len(set(self.kept_with))}

    def details(self) -> dict[str, object]:
        """Return the metrics that are saved only in metrics.json: one metric per class, and coverage by threshold."""
        details: dict[str, object] = {}
        if self.has_classes:
            details |= {"by_class": self.by_class, "class_figure": self.class_figure}
            details |= {"by_class_intervals": {name: [*ends] for name, ends in self.by_class_intervals.items()}}
        if self.has_probabilities:
            details["by_threshold"] = by_threshold(self.confidence, self.right, self.kept_with)
        return details

    def summary(self) -> dict[str, str]:
        """Return a dict from short headings to texts for all metrics other than the main metric."""
        between = self.between("mean_class_accuracy")
        return {"balanced": f"{100 * self.mean_class_accuracy:5.1f} %{between}  (each class counted once)"}

    def lines(self, of: str) -> Iterator[str]:
        """Yield the lines of a text summary; `of` is a text with the number and kind of items."""
        balanced = f", balanced {self.share('mean_class_accuracy')}" if self.has_classes else ""
        yield f"{self.share('accuracy')} of {of}{balanced}"

    def share(self, name: str, title: str = "") -> str:
        """Return a figure that is a share as text, with its interval if it has one: `mAP 81.2 % (76.0 to 85.9)`."""
        return f"{title} {100 * self.figures()[name]:.1f} %{self.between(name)}".lstrip()

    def between(self, name: str) -> str:
        """Return the interval of a share in per cent, as in ` (76.0 to 85.9)`, or "" if it has none."""
        return intervals.between(self.intervals.get(name))

    def rows(self) -> list[dict[str, object]]:
        """Return one dict per image, as in the rows of a run's predictions.csv."""
        grouped = len(set(self.kept_with)) < self.images
        return [
            {"path": path, "class": actual, "predicted": predicted, "confidence": round(confidence, 6)}
            | ({"group": group} if grouped else {})
            for path, actual, predicted, confidence, group in zip(
                self.paths, self.actual, self.predicted, self.confidence, self.kept_with
            )
        ]


@dataclass(frozen=True)
class QuestionScores(Scores):
    """Scores of answers to questions about images, which also store the questions."""

    questions: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, object]]:
        return [row | {"question": question} for row, question in zip(super().rows(), self.questions, strict=True)]


def scored(
    items: Sequence[Item],
    decisions: Iterable[tuple[list[str], list[float]]],
    actual: Sequence[str] | None = None,
) -> Scores:
    """Return scores from batches of answers and confidences; `actual` defaults to the correct answers of the items."""
    batches = list(decisions)
    return Scores(
        paths=tuple(item.name for item in items),
        actual=tuple(item.answer for item in items) if actual is None else tuple(actual),
        predicted=tuple(answer for answers, _ in batches for answer in answers),
        confidence=tuple(value for _, values in batches for value in values),
        groups=tuple(item.kept_with for item in items),
    )


class Difference(NamedTuple):
    """The mean merit of one model minus that of another on the same images, with its interval at 95 %.

    A merit is more for better answers: of errors it is minus the error. `p` is the probability of a difference at
    least as large between models that are equally good. `alone` are the numbers of images that only one, and only the
    other, answers right; None where answers are not right or wrong.
    """

    merit: float
    interval: Interval | None
    p: float
    alone: tuple[int, int] | None


def difference(one: Scores, other: Scores) -> Difference:
    """Compare two models' scores on the same images.

    Of right and wrong answers to independent images, `p` is that of McNemar's exact test, and otherwise that of a t
    test between groups.
    """
    ours, theirs, groups = one.merits, other.merits, one.kept_with
    merit = float(ours.double().mean() - theirs.double().mean())
    interval, p = intervals.of_difference(ours, theirs, groups)
    if ours.dtype != torch.bool:
        return Difference(merit, interval, p, None)
    alone = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if len(set(groups)) == len(groups):
        from scipy.stats import binomtest

        p = float(binomtest(alone[0], sum(alone)).pvalue) if any(alone) else 1.0
    return Difference(merit, interval, p, alone)


def compared(one: Scores, other: Scores, apart: Difference) -> JsonObject:
    """Return their difference `apart` as plain data, with `flips`, the images that two models answer differently.

    Those that one model has right come first, and classes take turns. There are none of answers that are not right or
    wrong, such as numbers.
    """
    rows = zip(one.paths, one.actual, one.predicted, other.predicted)
    flips = [
        {"path": path, "class": actual, "first": first, "second": second}
        for path, actual, first, second in rows
        if first != second and apart.alone is not None
    ]
    turns: defaultdict[tuple[bool, str], Iterator[int]] = defaultdict(count)
    flips.sort(
        key=lambda row: (wrong := row["class"] not in (row["first"], row["second"]), next(turns[wrong, row["class"]]))
    )
    return apart._asdict() | {"flips": flips}


def main_figure(figures: JsonObject) -> tuple[str, str]:
    """Return the name of the main metric, by which models are compared, and its title in tables."""
    return figures.get("main", Scores.main), figures.get("main_title", Scores.main_title)


def reliability(confidence: Sequence[float] | Tensor, right: Sequence[bool] | Tensor) -> list[dict[str, float]]:
    """Return the number of images, mean confidence and accuracy for each of 15 confidence bins that has images."""
    sure, hits = (torch.as_tensor(each, dtype=torch.double).flatten() for each in (confidence, right))
    bins = (sure * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    counted = zip(bins.bincount().tolist(), bins.bincount(sure).tolist(), bins.bincount(hits).tolist(), strict=True)
    return [
        {"images": count, "confidence": total / count, "accuracy": of_right / count}
        for count, total, of_right in counted
        if count
    ]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Return the mean absolute difference of confidence and accuracy over bins, weighted by images per bin."""
    gaps = (each["images"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return sum(gaps) / sum(each["images"] for each in bins)


def by_threshold(
    confidence: Sequence[float], right: Sequence[bool], groups: Sequence[str]
) -> list[dict[str, float | list[float] | None]]:
    """Return the number of `answered` images, their `share` of all images and their `accuracy` for each threshold.

    An image is answered if its confidence is at least the threshold. The accuracy, and its `interval` at 95 %, are None
    if no image is answered.
    """
    rows: list[dict[str, float | list[float] | None]] = []
    for threshold in THRESHOLDS:
        places = [place for place, sure in enumerate(confidence) if sure >= threshold]
        hits = torch.tensor([right[place] for place in places])
        interval = intervals.of_share(hits, [groups[place] for place in places]) if places else None
        rows.append(
            {
                "threshold": threshold,
                "answered": len(places),
                "share": len(places) / len(confidence),
                "accuracy": float(hits.double().mean()) if places else None,
                "interval": None if interval is None else [*interval],
            }
        )
    return rows


def coverage_and_accuracy(confidence: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """Return the share of images answered and the accuracy on these images, at every distinct confidence threshold.

    The highest threshold comes first. Images with the same confidence are answered together.
    """
    ranked = sorted(zip(confidence, right, strict=True), key=lambda pair: -pair[0])
    points, hits = list[tuple[float, float]](), 0
    for place, (sure, hit) in enumerate(ranked, 1):
        hits += hit
        if place == len(ranked) or ranked[place][0] < sure:
            points.append((place / len(ranked), hits / place))
    return points
