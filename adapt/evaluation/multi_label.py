"""Images that may have several classes, or none: how well each class ranks the images, and what is said of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapt.data.item import Item
from adapt.evaluation.scores import Scores
from adapt.models.prediction import HALF, NONE, finite
from adapt.tasks import SEPARATOR

_STEPS = 60  # of a bisection, which leave nothing of fp64


@dataclass(frozen=True)
class MultiLabelScores(Scores):
    """Each image's classes and those said of it, as one text; `confidence` is the probability of the likeliest class.

    `average_precision` are those of the classes that some image has, `f1` of all decisions at a probability of one
    half, and `class_f1` the mean of the classes'.
    """

    main: ClassVar[str] = "mean_average_precision"
    has_probabilities: ClassVar[bool] = False

    hits: tuple[bool, ...] = ()
    average_precision: dict[str, float] | None = None
    f1: float = 0.0
    class_f1: float = 0.0

    @classmethod
    def of(
        cls, items: Sequence[Item], probabilities: Tensor, truth: Tensor, class_names: Sequence[str]
    ) -> MultiLabelScores:
        """Scores of `items` with these probabilities `(n, c)`; `truth` `(n, c)` says which classes each has."""
        said = probabilities >= HALF
        best = probabilities.max(-1)
        first = truth.gather(1, best.indices[:, None])[:, 0]
        seen = truth.any(0)
        return cls(
            paths=tuple(item.name for item in items),
            actual=tuple(_joined(row, class_names) for row in truth),
            predicted=tuple(_joined(row, class_names) for row in said),
            confidence=tuple(best.values.tolist()),
            hits=tuple(torch.where(truth.any(-1), first, ~said.any(-1)).tolist()),
            average_precision={
                name: average_precision(probabilities[:, label], truth[:, label])
                for label, name in enumerate(class_names)
                if seen[label]
            },
            f1=float(f1(truth.flatten(), said.flatten())),
            class_f1=float(f1(truth, said)[seen].mean()) if seen.any() else 0.0,
        )

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether the likeliest class is one of the image's; of an image without classes, whether none is said."""
        return self.hits

    @property
    def by_class(self) -> dict[str, float]:
        """The average precision of each class that some image has."""
        return self.average_precision or {}

    @property
    def mean_average_precision(self) -> float:
        return sum(self.by_class.values()) / max(1, len(self.by_class))

    def figures(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "images": self.images,
            "mean_class_accuracy": self.accuracy,  # an image is of no one class
            "calibration_error": self.calibration_error,
            "mean_average_precision": self.mean_average_precision,
            "f1": self.f1,
            "mean_class_f1": self.class_f1,
        }

    def lines(self, of: str) -> Iterator[str]:
        yield f"{said_of_labels(self.figures())}; likeliest class right for {100 * self.accuracy:.1f} % of {of}"


def average_precision(scores: Tensor, right: Tensor) -> float:
    """The mean precision at which each right one of `(n,)` is found, the highest scores first; equal ones at once.

    There is a right one. scikit-learn's `average_precision_score`.
    """
    values, order = scores.sort(descending=True)
    found = right[order].double().cumsum(0)
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])  # of those with equal scores
    counts = torch.arange(1, len(values) + 1, dtype=torch.double)[last]
    found = found[last]
    gained = found.diff(prepend=torch.zeros(1, dtype=torch.double))
    return float((gained * found / counts).sum() / found[-1])


def f1(truth: Tensor, said: Tensor) -> Tensor:
    """Of decisions `(n, ...)`, over the first axis; 0 where nothing is there and nothing said."""
    both = 2 * (truth & said).sum(0).double()
    return both / (truth.sum(0) + said.sum(0)).clamp_min(1)


def prior_bias(logits: Tensor, labels: Tensor) -> float:
    """What is to be added to logits `(n, c)` so that the mean of their sigmoids is the share of right `labels`."""
    logits, share = finite(logits).double(), labels.double().mean()
    share = share.clamp(1 / (2 * labels.numel()), 1 - 1 / (2 * labels.numel()))
    odds = float(share.logit())
    low, high = odds - float(logits.max()), odds - float(logits.min())
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if (logits + middle).sigmoid().mean() < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def prior_biases(logits: Tensor, labels: Tensor, own: float, scales: Sequence[float] = (1.0,)) -> list[float]:
    """What is to be added to as many times the logits `(n, c)`, whose own bias is `own`, to give several classes.

    As many probabilities as items have classes add up then.
    """
    return [prior_bias((logits - own) * scale + own, labels) for scale in scales]


def said_of_labels(figures: dict[str, Any]) -> str | None:
    """The figures of several labels, as a person reads them; None where there are none."""
    if "mean_average_precision" not in figures:
        return None
    mean, f1, by_class = (100 * figures[name] for name in ("mean_average_precision", "f1", "mean_class_f1"))
    return f"mAP {mean:.1f} %, F1 {f1:.1f} %, mean F1 of classes {by_class:.1f} %"


def _joined(row: Tensor, class_names: Sequence[str]) -> str:
    return SEPARATOR.join(class_names[label] for label in row.nonzero()[:, 0].tolist()) or NONE
