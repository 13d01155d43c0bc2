"""Checks for models that answer questions: each image has a question, and in training an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from adapt.errors import AdaptError

if TYPE_CHECKING:
    from adapt.models.base import Adapted
    from adapt.models.prediction import Wanted


def check(images: Tensor, texts: Sequence[str], kind: str = "question") -> None:
    """Raise AdaptError unless `texts` is a list with one text, such as a question, for each image `(b, 3, h, w)`."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)
        raise AdaptError(f"images are {given}; expected (b, 3, h, w), one image for each {kind}")
    if isinstance(texts, str) or len(texts) != len(images):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} {kind}s"
        raise AdaptError(f"{given} about {len(images)} images: give a list with one {kind} for each image")


def of_each(images: Tensor, question: str | None) -> list[str]:
    """Return `question` once for each image, as a list. Raises AdaptError if there is no question."""
    if question is None:
        raise AdaptError("this model answers questions about images, and there is no question: give one")
    return [question] * len(images)


def check_featureless(model: Adapted, wanted: Wanted) -> None:
    """Raise AdaptError if a request wants image features from a model that answers questions and has none."""
    if wanted.features:
        raise AdaptError(f"{model.backbone.describe()} has no image features to return: leave features out")
