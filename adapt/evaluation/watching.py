"""Watching over labelled images: what training images look like, and whether those of an evaluation look otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.data.bags import has_bags
from adapt.data.decoding.image_set import loader
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.models.base import Adapted
from adapt.models.features import item_features, keeps_features, of_texts
from adapt.models.image_model import ImageModel
from adapt.models.watch import FEWEST, Watch, Window, Windows, properties

MOST = 1000  # training images that are looked at, drawn where there are more


def check_watched(model: Adapted, items: Sequence[Item]) -> None:
    """Raise AdaptError if what `items` look like to the backbone of `model` cannot be watched."""
    if not isinstance(model, ImageModel):
        raise AdaptError(f"{model.backbone.describe()} cannot be watched: use a CLIP or a vision encoder, or no watch")
    if of_texts(items) or has_bags(items):
        what = "texts" if of_texts(items) else "items of several images"
        raise AdaptError(f"a watch is of single images, but the data has {what}: leave the watch out")


def watched(model: Adapted, items: Sequence[Item], inference: Inference | None = None) -> Watch:
    """Return what the training images `items` look like to the frozen backbone of `model`; `model.watch` takes it.

    Of more than 1,000 images, so many are drawn. Raises AdaptError for a model or items that cannot be watched, and for
    fewer than 16 images.
    """
    check_watched(model, items)
    if len(items) > MOST:
        items = Random(0).sample([*items], MOST)
    pixels, features = _looked_at(model, items, inference or Inference())
    labels = _labels(model, items)
    classes = len(model.class_names) if labels is not None else 1
    return Watch.of(pixels, features, torch.zeros(len(items)).long() if labels is None else labels, classes)


def changes(model: Adapted, items: Sequence[Item], inference: Inference | None = None) -> list[Window]:
    """Return how each window of labelled `items` compares with the training images; nothing without a watch.

    Windows are of items in a random order, as neighbours may be alike, such as pictures of one thing.
    """
    watch = model.watch
    if watch is None or len(items) < FEWEST or of_texts(items) or has_bags(items):
        return []
    items = Random(0).sample([*items], len(items))
    pixels, features = _looked_at(model, items, inference or Inference())
    labels = _labels(model, items)
    seen = watch.seen(pixels, features, [0] * len(items) if labels is None else labels.tolist())
    windows = Windows(watch)
    compared = [windows.add(each, item.name) for each, item in zip(seen, items, strict=True)]
    return [change for change in (*compared, windows.rest()) if change is not None]


def _labels(model: Adapted, items: Sequence[Item]) -> Tensor | None:
    task = tasks.of(items)
    return task.numbers(items, model.class_names) if task.one_class and model.class_names else None


def _looked_at(model: Adapted, items: Sequence[Item], inference: Inference) -> tuple[Tensor, Tensor | None]:
    """Return the properties `(n, 14)` of the items' images, and their frozen features if the method needs no others."""
    assert isinstance(model, ImageModel)
    images = loader(items, model.backbone.transform(train=False), 64, train=False, workers=inference.workers)
    pixels = torch.cat([properties(batch) for batch, _ in images])
    if not keeps_features(model, True) or model.method.views:
        return pixels, None
    return pixels, item_features(
        model, items, workers=inference.workers, cache=inference.cache, progress=inference.progress
    )
