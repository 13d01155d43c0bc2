"""Predictions of a classifier on a list of images, and the figures computed from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.evaluation.coverage import by_threshold

if TYPE_CHECKING:
    from adapt.data.item import Item

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Predictions on a list of images: the path, class and predicted class of each, and the predicted probability."""

    paths: tuple[str, ...]
    actual: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: tuple[float, ...]

    main: ClassVar[str] = "accuracy"
    """The figure by which models are compared, a share."""
    main_title: ClassVar[str] = "accuracy"
    """The title of the main figure in tables."""
    class_figure: ClassVar[str] = "recall"
    """The name of the figure in `by_class`."""
    has_probabilities: ClassVar[bool] = True
    """Whether `confidence` is the probability of an answer, to which a threshold can apply."""

    @property
    def images(self) -> int:
        return len(self.actual)

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(actual == predicted for actual, predicted in zip(self.actual, self.predicted))

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, in [0, 1], as published: not the mean over classes."""
        return sum(self.right) / self.images

    @property
    def by_class(self) -> dict[str, float]:
        """The recall of each class that has images, in [0, 1]."""
        right: dict[str, list[bool]] = defaultdict(list)
        for name, hit in zip(self.actual, self.right):
            right[name].append(hit)
        return {name: sum(hits) / len(hits) for name, hits in sorted(right.items())}

    @property
    def mean_class_accuracy(self) -> float:
        """The mean of the recalls of the classes, in [0, 1]: balanced accuracy."""
        return sum(self.by_class.values()) / len(self.by_class)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in [0, 1] over 15 bins of equal width (Guo et al., ICML 2017)."""
        return calibration_error(self.reliability())

    def reliability(self) -> list[dict[str, float]]:
        """Return the number of images, mean confidence and accuracy of each bin of confidence that has images."""
        return reliability(self.confidence, self.right)

    def figures(self) -> dict[str, Any]:
        """Return the figures for metrics.json, few enough for an adapter's header too."""
        return {
            "accuracy": self.accuracy,
            "images": self.images,
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
        }

    def details(self) -> dict[str, object]:
        """Return the details that only metrics.json has: a figure for each class, and coverage by threshold."""
        thresholds = {"by_threshold": by_threshold(self.confidence, self.right)} if self.has_probabilities else {}
        return {"by_class": self.by_class, "class_figure": self.class_figure, **thresholds}

    def summary(self) -> dict[str, str]:
        """Return a text for each figure besides the main one, by a short heading."""
        return {"balanced": f"{100 * self.mean_class_accuracy:5.1f} %  (each class counted once)"}

    def lines(self, of: str) -> Iterator[str]:
        """Yield the lines of a text summary; `of` is the number and kind of items, in words."""
        yield f"{100 * self.accuracy:.1f} % of {of}, balanced {100 * self.mean_class_accuracy:.1f} %"

    def rows(self) -> list[dict[str, object]]:
        """Return one row for each image, as in a run's predictions.csv."""
        return [
            {"path": path, "class": actual, "predicted": predicted, "confidence": round(confidence, 6)}
            for path, actual, predicted, confidence in zip(self.paths, self.actual, self.predicted, self.confidence)
        ]


@dataclass(frozen=True)
class QuestionScores(Scores):
    """Scores of answers to questions, with the questions."""

    questions: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, object]]:
        return [row | {"question": question} for row, question in zip(super().rows(), self.questions, strict=True)]


def scored(
    items: Sequence[Item],
    decisions: Iterable[tuple[list[str], list[float]]],
    actual: Sequence[str] | None = None,
) -> Scores:
    """Return scores from `decisions` (batches of answers and confidences); `actual` is by default the right answers."""
    batches = list(decisions)
    return Scores(
        paths=tuple(item.name for item in items),
        actual=tuple(item.answer for item in items) if actual is None else tuple(actual),
        predicted=tuple(answer for answers, _ in batches for answer in answers),
        confidence=tuple(value for _, values in batches for value in values),
    )


def main_figure(figures: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the figure by which models are compared, and its title in tables."""
    return figures.get("main", Scores.main), figures.get("main_title", Scores.main_title)


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """Return the number of images, mean confidence and accuracy of each of 15 bins of confidence that has images."""
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
    """Return the mean distance between confidence and accuracy, weighted by the images of each bin."""
    gaps = (each["images"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return sum(gaps) / sum(each["images"] for each in bins)
