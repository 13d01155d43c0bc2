"""Classifies a list of images with a model in its last state, as published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from adapt.data.decoding.loader import loader
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.evaluation.scores import Scores
from adapt.features import image_features, keeps_features
from adapt.models.base import Adapted, evaluating
from adapt.models.classifier import AdaptedModel
from adapt.models.prediction import decided
from adapt.progress import Progress

Decided = tuple[list[str], list[float]]  # what a model says of a batch, and how sure it is

BATCH_SIZE = 100
FEATURES = 1024  # cached features classified at once
FEATURES_PER_IMAGE = 32  # the same where every image has class features of its own


@torch.no_grad()
def evaluate(
    model: Adapted[Any],
    items: Sequence[Item],
    *,
    workers: int = 2,
    cache: bool = True,
    progress: Progress | None = None,
) -> Scores:
    """Classifies `items`, or answers their questions. Features of an unedited vision tower come from the cache.

    Raises AdaptError where labels do not belong to the model's classes, or a file cannot be decoded.
    """
    check_labels(model, items)
    if keeps_features(model, cache):
        found = list(_from_features(model, items, workers, progress))
    else:
        found = list(_decoded(model, items, workers, progress))
    return Scores(
        paths=tuple(item.path for item in items),
        actual=tuple(item.class_name for item in items),
        predicted=tuple(answer for answers, _ in found for answer in answers),
        confidence=tuple(value for _, values in found for value in values),
        questions=tuple(item.question for item in items if item.question),
    )


def _from_features(
    model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None
) -> Iterator[Decided]:
    method, device = model.method, model.backbone.device
    features = image_features(model, items, workers=workers, progress=progress).to(device)
    size = FEATURES_PER_IMAGE if method.per_image or method.views else FEATURES
    views: Iterable[Tensor | None] = repeat(None)
    if method.views:
        of_views = image_features(model, items, workers=workers, views=method.views, progress=progress)
        views = of_views.to(device).split(size)
    for part, its_views in zip(features.split(size), views):
        with evaluating(model):
            found = decided(model.logits(part, its_views), model.class_names)
        yield found


def _decoded(model: Adapted[Any], items: Sequence[Item], workers: int, progress: Progress | None) -> Iterator[Decided]:
    transform = model.transform()
    done = 0
    for inputs, labels in loader(items, transform, BATCH_SIZE, train=False, workers=workers):
        with evaluating(model):  # for a batch at a time, so that other threads' calls come in between
            found = model.decide(inputs)
        yield found
        done += len(labels)
        if progress is not None:
            progress(done, len(items))


def check_labels(model: Adapted[Any], items: Sequence[Item]) -> None:
    """Raises AdaptError unless each item's class is the model's of that label, and a question is there if need be."""
    if not items:
        raise AdaptError("there are no images to classify: this part of the data is empty")
    asks = bool(items[0].question)
    if asks != (not isinstance(model, AdaptedModel)):
        family = model.backbone.family
        if asks:
            raise AdaptError(f"the data asks questions, and a {family} classifies images: take a ViLT or a vision LLM")
        raise AdaptError(f"a {family} answers questions, and the data has none: give a .csv with path,question,label")
    if not model.class_names:  # it answers in words of its own
        return
    names = model.class_names
    for item in items:
        if item.label >= len(names) or names[item.label] != item.class_name:
            raise AdaptError(
                f"{item.path} is of class {item.class_name!r}, label {item.label}, which the model calls otherwise; "
                f"wrap or load the model with the data's own class names"
            )
