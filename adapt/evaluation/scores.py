"""Predictions of a classifier on a list of images, and the figures and standard errors computed from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from adapt.common.plain import JsonObject

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
    """Predictions for a list of images: the path, true class, predicted class and confidence of each image."""

    paths: tuple[str, ...]
    actual: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: tuple[float, ...]

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
        right: dict[str, list[bool]] = defaultdict(list)
        for name, hit in zip(self.actual, self.right):
            right[name].append(hit)
        return {name: sum(hits) / len(hits) for name, hits in sorted(right.items())}

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
        return {
            "accuracy": self.accuracy,
            "images": self.images,
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
        }

    def details(self) -> dict[str, object]:
        """Return the metrics that are saved only in metrics.json: one metric per class, and coverage by threshold."""
        details: dict[str, object] = {}
        if self.has_classes:
            details |= {"by_class": self.by_class, "class_figure": self.class_figure}
        if self.has_probabilities:
            details["by_threshold"] = by_threshold(self.confidence, self.right)
        return details

    def summary(self) -> dict[str, str]:
        """Return a dict from short headings to texts for all metrics other than the main metric."""
        return {"balanced": f"{100 * self.mean_class_accuracy:5.1f} %  (each class counted once)"}

    def lines(self, of: str) -> Iterator[str]:
        """Yield the lines of a text summary; `of` is a text with the number and kind of items."""
        yield f"{100 * self.accuracy:.1f} % of {of}, balanced {100 * self.mean_class_accuracy:.1f} %"

    def rows(self) -> list[dict[str, object]]:
        """Return one dict per image, as in the rows of a run's predictions.csv."""
        return [
            {"path": path, "class": actual, "predicted": predicted, "confidence": round(confidence, 6)}
            for path, actual, predicted, confidence in zip(self.paths, self.actual, self.predicted, self.confidence)
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
    )


def main_figure(figures: JsonObject) -> tuple[str, str]:
    """Return the name of the main metric, by which models are compared, and its title in tables."""
    return figures.get("main", Scores.main), figures.get("main_title", Scores.main_title)


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """Return the number of images, mean confidence and accuracy for each of 15 confidence bins that has images."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for sure, hit in zip(confidence, right, strict=True):
        bins[min(int(sure * CALIBRATION_BINS), CALIBRATION_BINS - 1)].append((sure, hit))
    return [
        {
            "images": len(members),
            "confidence": sum(sure for sure, _ in members) / len(members),
            "accuracy": sum(hit for _, hit in members) / len(members),
        }
        for _, members in sorted(bins.items())
    ]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Return the mean absolute difference of confidence and accuracy over bins, weighted by images per bin."""
    gaps = (each["images"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return sum(gaps) / sum(each["images"] for each in bins)


def by_threshold(
    confidence: Sequence[float], right: Sequence[bool], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float | None]]:
    """Return the number of `answered` images, their `share` of all images and their `accuracy` for each threshold.

    An image is answered if its confidence is at least the threshold. The accuracy is None if no image is answered.
    """
    rows: list[dict[str, float | None]] = []
    for threshold in thresholds:
        hits = [hit for sure, hit in zip(confidence, right, strict=True) if sure >= threshold]
        rows.append(
            {
                "threshold": threshold,
                "answered": len(hits),
                "share": len(hits) / len(confidence),
                "accuracy": sum(hits) / len(hits) if hits else None,
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


def standard_error(values: Tensor, groups: Sequence[str]) -> float:
    """Return the cluster-robust standard error of the mean of `values` `(n,)`; each group in `groups` is a cluster.

    The correction for few groups is included. Returns 0 for a single group, because the error is then unknown.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return 0.0
    group = torch.tensor([numbers[name] for name in groups])
    deviations = values.double() - values.double().mean()
    sums = torch.zeros(len(numbers), dtype=torch.double).index_add(0, group, deviations)
    factor = len(numbers) / (len(numbers) - 1)
    return float((factor * sums.square().sum()).sqrt() / len(values))
