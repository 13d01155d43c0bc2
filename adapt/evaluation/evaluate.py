"""Classifies a list of images with a model in its last state, as published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adapt.data.loader import loader
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.evaluation.scores import Scores
from adapt.model import AdaptedModel
from adapt.training.batches import Progress, image_features

BATCH_SIZE = 100
FEATURES = 1024  # cached features classified at once
FEATURES_PER_IMAGE = 32  # the same where every image has class features of its own


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
        cached = cache and "vision" not in model.method.touches
        batches = _from_features if cached else _decoded
        best = [logits.float().softmax(-1).max(-1) for logits in batches(model, items, workers, progress)]
    finally:
        model.train(was_training)
    predicted = torch.cat([each.indices.cpu() for each in best]).tolist()
    return Scores(
        paths=tuple(item.path for item in items),
        actual=tuple(item.class_name for item in items),
        predicted=tuple(model.class_names[label] for label in predicted),
        confidence=tuple(torch.cat([each.values.cpu() for each in best]).tolist()),
    )


def _from_features(
    model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None
) -> Iterator[Tensor]:
    features = image_features(model, items, workers=workers, progress=progress).to(model.backbone.device)
    for part in features.split(FEATURES_PER_IMAGE if model.method.per_image else FEATURES):
        yield model.logits(part)


def _decoded(model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None) -> Iterator[Tensor]:
    transform = model.backbone.transform(train=False)
    done = 0
    for images, _ in loader(items, transform, BATCH_SIZE, train=False, workers=workers):
        yield model(images.to(model.backbone.device))
        done += len(images)
        if progress is not None:
            progress(done, len(items))


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
