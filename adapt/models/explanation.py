"""Explanations of predictions: the cosines of an image to the descriptors (short phrases) of its classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep, trait
from adapt.methods.base.traits import Explains
from adapt.models.base import evaluating
from adapt.models.prediction import Prediction, Wanted, predictions

if TYPE_CHECKING:
    from adapt.models.image_model import ImageModel


@dataclass(frozen=True)
class Reasons:
    """The descriptors of one class with their cosines to an image, sorted from the largest, and the mean cosine."""

    class_name: str
    mean: float
    descriptors: tuple[tuple[str, float], ...]

    def plain(self) -> dict[str, object]:
        """Return the descriptors with their cosines, and the mean cosine, as data for JSON."""
        return {"mean": self.mean, "descriptors": [{"text": text, "cosine": value} for text, value in self.descriptors]}


@dataclass(frozen=True)
class Explanation:
    """The prediction for an image, with descriptors and cosines (`Reasons`) for each class in `prediction.top`."""

    prediction: Prediction
    reasons: tuple[Reasons, ...]


def explained(model: ImageModel, images: object, wanted: Wanted, batch_size: int) -> Iterator[Explanation]:
    """Yield an `Explanation` for each image. Raises AdaptError if the method does not classify by descriptors."""
    explains = check_descriptors(model)
    for pixels in model.pixels_of(images, batch_size):
        with evaluating(model), torch.no_grad():
            batch = list(_of_batch(model, explains, pixels, wanted))
        yield from batch


def check_descriptors(model: ImageModel) -> Explains:
    """Return the method that supplies class descriptors. Raises AdaptError if no method supplies descriptors."""
    explains = trait(model.method, Explains)
    if explains is None or not model.class_names:
        raise AdaptError(
            f"{model.method.name} does not decide by descriptors of classes, so predictions cannot be explained: use "
            "the method `descriptions`"
        )
    return explains


def _of_batch(model: ImageModel, explains: Explains, pixels: Tensor, wanted: Wanted) -> Iterator[Explanation]:
    step = ImageStep(model, pixels)
    cosines = [step.features @ own.T for own in step.prompt_features]  # (b, m) of each class
    label = {name: number for number, name in enumerate(model.class_names)}
    for row, prediction in enumerate(predictions(model.answers.of(step), model.class_names, wanted, model.answers)):
        reasons = [_reasons(explains, name, cosines[label[name]][row].tolist()) for name, _ in prediction.top]
        yield Explanation(prediction, tuple(reasons))


def _reasons(explains: Explains, class_name: str, cosines: Sequence[float]) -> Reasons:
    described = zip(explains.descriptors(class_name), cosines, strict=True)
    best_first = tuple(sorted(described, key=lambda each: -each[1]))
    return Reasons(class_name, sum(cosines) / len(cosines), best_first)
