"""What a model is asked of images, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from adapt.errors import AdaptError
from adapt.models.answers import PLAIN, Answers

NOT_FINITE = (
    "the model's output is not finite: the adapter's values, or the backbone's, overflow. Train again at a lower rate, "
    "or use a precision with a wider range, such as bf16 or fp32"
)


def finite(logits: Tensor) -> Tensor:
    """`logits` as they are. AdaptError where one is no number, so that no answer could be told from it."""
    if not logits.isfinite().all():
        raise AdaptError(NOT_FINITE)
    return logits


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image, or answer about it, and the best few with their probabilities.

    Under the threshold that was asked for, the class is `none`; `probability` and `top` are what was the most probable.
    """

    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]
    """The most probable first."""
    label: int | None = None
    """The number of the class in the model's `class_names`; None for `none`, and for an answer in words."""
    number: float | None = None
    """What the method makes of the image as a number, such as a grade, where it learned such."""
    class_names: tuple[str, ...] | None = None
    """All classes that are as probable as the threshold, where an image may have several: the first ones of `top`."""
    features: Tensor | None = field(default=None, compare=False, repr=False)
    """Of the image `(e,)`, of unit length, on the CPU, where they were asked for."""

    def plain(self) -> dict[str, Any]:
        """For JSON, but without features; the key of a class's name is `class`, as in every CSV."""
        top = [{"class": name, "probability": probability} for name, probability in self.top]
        own = {"class": self.class_name, "label": self.label, "probability": self.probability, "number": self.number}
        several = {} if self.class_names is None else {"classes": list(self.class_names)}
        return {**own, **several, "top": top}


NONE = "none"  # the class of an image that is not sure enough of any
HALF = 0.5  # the threshold of several classes, where none is given


@dataclass(frozen=True)
class Wanted:
    """What is asked about each image: how many classes, from which probability on, with features, and a question.

    Raises AdaptError for a number of classes that cannot be shown, and a threshold outside [0, 1].
    """

    top_k: int = 5
    threshold: float | None = None
    features: bool = False
    question: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise AdaptError(f"top_k is {self.top_k!r}; expected how many classes to give for an image, 1 or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise AdaptError(f"threshold is {self.threshold!r}; expected the least probability of an answer, 0 to 1")


def predictions(
    logits: Tensor,
    class_names: Sequence[str],
    wanted: Wanted,
    answers: Answers = PLAIN,
    features: Tensor | None = None,
    numbers: Tensor | None = None,
) -> Iterator[Prediction]:
    """The predictions that logits `(b, n)` of `n` classes make, one or several of them as `answers` are.

    With unit-length features `(b, e)`, and the numbers `(b,)` that the logits stand for, where given.
    """
    count = len(class_names) if answers.several else min(wanted.top_k, len(class_names))
    probabilities, indices = answers.probabilities(finite(logits).float()).topk(count)
    of_each = [None] * len(logits) if features is None else list(features.float().cpu())
    said = [None] * len(logits) if numbers is None else numbers.tolist()
    threshold = HALF if answers.several and wanted.threshold is None else wanted.threshold
    for row, chosen, number, own in zip(probabilities.tolist(), indices.tolist(), said, of_each, strict=True):
        top = tuple((class_names[index], probability) for index, probability in zip(chosen, row))
        several = _above(top, threshold or 0.0) if answers.several else None
        shown = top[: max(wanted.top_k, len(several or ()))]
        yield judged(Prediction(*top[0], shown, chosen[0], number, several, own), threshold)


def _above(ranked: Sequence[tuple[str, float]], threshold: float) -> tuple[str, ...]:
    return tuple(name for name, probability in ranked if probability >= threshold)


def judged(found: Prediction, threshold: float | None) -> Prediction:
    """The same, or `none` where it is less probable than the threshold."""
    if threshold is None or found.probability >= threshold:
        return found
    return replace(found, class_name=NONE, label=None)


def decided(logits: Tensor, class_names: Sequence[str]) -> tuple[list[str], list[float]]:
    """The most probable class of each row of `(b, n)`, and its probability."""
    best = finite(logits).float().softmax(-1).max(-1)
    return [class_names[label] for label in best.indices.tolist()], best.values.tolist()
