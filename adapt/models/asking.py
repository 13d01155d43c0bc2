"""One question, and in training one answer, for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adapt.errors import AdaptError

if TYPE_CHECKING:
    from adapt.models.prediction import Wanted


def check(images: Tensor, texts: Sequence[str], kind: str = "question") -> None:
    """AdaptError unless there is one text of this kind, in a list, for each image `(b, 3, h, w)`."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)
        raise AdaptError(f"images are {given}; expected (b, 3, h, w), one image for each {kind}")
    if isinstance(texts, str) or len(texts) != len(images):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} {kind}s"
        raise AdaptError(f"{given} about {len(images)} images: give a list of one {kind} for each image")


def of_each(images: Tensor, question: str | None) -> list[str]:
    """The same question about each image. AdaptError where there is none."""
    if question is None:
        raise AdaptError("this model answers questions about images: give one")
    return [question] * len(images)


def check_featureless(model: Any, wanted: Wanted) -> None:
    """AdaptError where features are asked of a model that answers questions."""
    if wanted.features:
        raise AdaptError(f"{model.backbone.describe()} answers by no features of an image: leave features out")
