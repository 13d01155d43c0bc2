"""Answers about a set of images together, for methods whose answer to an image depends on the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapt.common.devices import moved
from adapt.common.errors import AdaptError
from adapt.data.bags import has_bags
from adapt.methods.base import Encoded, ImageStep
from adapt.methods.base.traits import OverSet, trait
from adapt.models.base import Adapted, evaluating

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.models.image_model import ImageModel

logger = logging.getLogger("adapt")


def check_together(model: ImageModel) -> OverSet:
    """Return the method that answers sets of images. Raises AdaptError if the model answers each image by itself."""
    method = trait(model.method, OverSet)
    if method is None:
        raise AdaptError(
            f"{model.method.name} answers each image by itself: use a method such as stata, or a composition with it, "
            "to answer images together"
        )
    if model.answers.blend < 1:
        raise AdaptError("a blend with zero-shot answers is for images by themselves: leave the blend out")
    return method


def can_answer_together(model: Adapted, items: Sequence[Item]) -> bool:
    """Return whether the model can answer these items together."""
    method = trait(model.method, OverSet)
    if method is None or len(items) < method.smallest or model.answers.blend < 1:
        return False
    return model.answers.pooling == "features" or not has_bags(items)


def logits_together(model: ImageModel, features: Tensor, at_a_time: int | None = None) -> Tensor:
    """Return the logits `(n, n_classes)` of images that are answered together, on the CPU.

    `features` `(n, e)` are the images' unit-length features, computed by the adapted tower. With `at_a_time`, sets of
    about so many images, of nearly equal size, are answered one after the other. A temperature by which answers of
    images by themselves are calibrated is not used.

    Raises AdaptError if the method answers each image by itself, and for fewer images than the method needs.
    """
    method, images = check_together(model), len(features)
    if at_a_time is not None and at_a_time < method.smallest:
        raise AdaptError(f"at_a_time is {at_a_time}; {model.method.name} needs {method.smallest} or more images")
    if images < method.smallest:
        raise AdaptError(
            f"there are {images} images, but {model.method.name} answers {method.smallest} or more images together: "
            "give more images, or predict each image by itself"
        )
    count = 1 if at_a_time is None else min(math.ceil(images / at_a_time), images // method.smallest)
    # a temperature was fitted to answers of images by themselves
    settings = replace(model.answers, temperature=1.0)
    doubts, answers = list[str](), list[Tensor]()
    for part in features.float().tensor_split(count):
        step = _step(model, part)
        with evaluating(model), torch.no_grad():
            doubts.append(method.doubt(step))
            answers.append(settings.adjusted(method.infer_set(step), step).cpu())
    for doubt in [*filter(None, doubts)][:1]:
        logger.warning("%s: %s: these answers may be worse than those image by image", model.method.name, doubt)
    return torch.cat(answers)


def _step(model: ImageModel, features: Tensor) -> ImageStep:
    features = moved(features, model.backbone.device)
    step = ImageStep(model, Encoded(features))
    step.features = features  # of the adapted tower already, not to be projected again
    return step
