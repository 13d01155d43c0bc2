"""Accuracy over a list of images, as published: correct over all, in the last state of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.data.loader import loader
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.model import AdaptedModel
from adapt.training.batches import Progress, image_features, labels_of

BATCH_SIZE = 100
FEATURES = 1024  # cached features classified at once
FEATURES_PER_IMAGE = 32  # the same where every image has class features of its own


@dataclass(frozen=True)
class Scores:
    """`accuracy` in [0, 1] over `images` images; `predicted` `(n,)` are the labels chosen, in the images' order."""

    accuracy: float
    images: int
    predicted: Tensor


@torch.inference_mode()
def evaluate(
    model: AdaptedModel,
    items: Sequence[Item],
    *,
    workers: int = 2,
    cache: bool = True,
    progress: Progress | None = None,
) -> Scores:
    """Classifies `items` with the backbone's own transform. Features of an unedited vision tower come from the cache.

    Raises AdaptError where labels do not belong to the model's classes, or a file cannot be decoded.
    """
    check_labels(model, items)
    was_training = model.training
    model.eval()
    try:
        if cache and "vision" not in model.method.touches:
            features = image_features(model, items, workers=workers, progress=progress).to(model.backbone.device)
            size = FEATURES_PER_IMAGE if model.method.per_image else FEATURES
            predicted = [model.logits(part).argmax(-1).cpu() for part in features.split(size)]
        else:
            predicted = _decoded(model, items, workers, progress)
    finally:
        model.train(was_training)
    labels = torch.cat(predicted)
    return Scores(int((labels == labels_of(items)).sum()) / len(items), len(items), labels)


def _decoded(model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None) -> list[Tensor]:
    transform = model.backbone.transform(train=False)
    predicted, done = [], 0
    for images, _ in loader(items, transform, BATCH_SIZE, train=False, workers=workers):
        predicted.append(model(images.to(model.backbone.device)).argmax(-1).cpu())
        done += len(images)
        if progress is not None:
            progress(done, len(items))
    return predicted


def check_labels(model: AdaptedModel, items: Sequence[Item]) -> None:
    """Raises AdaptError unless every item's class is the model's class of that label."""
    if not items:
        raise AdaptError("there are no images to classify: this part of the data is empty")
    names = model.class_names
    for item in items:
        if item.label >= len(names) or names[item.label] != item.class_name:
            raise AdaptError(
                f"{item.path} is of class {item.class_name!r}, label {item.label}, which the model calls otherwise; "
                f"wrap or load the model with the data's own class names"
            )
