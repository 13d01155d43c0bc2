"""Watching over labelled images: what training images look like, and whether those of an evaluation look otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
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
from adapt.models.watch import FEWEST, MOST_CLASSES, Watch, Window, Windows, properties

MOST = 1000  # training images that are looked at, drawn where there are more


def check_watch(model: Adapted, items: Sequence[Item]) -> None:
    """Raise AdaptError if what the training images `items` look like to the backbone of `model` cannot be kept."""
    if not isinstance(model, ImageModel):
        raise AdaptError(f"{model.backbone.describe()} cannot be watched: use a CLIP or a vision encoder, or no watch")
    if model.backbone.as_decoded:
        raise AdaptError(
            f"a watch looks at pixels, which {model.backbone.describe()} prepares by a processor: leave the watch out"
        )
    if of_texts(items) or has_bags(items):
        what = "texts" if of_texts(items) else "items of several images"
        raise AdaptError(f"a watch is of single images, but the data has {what}: leave the watch out")
    if (count := len(_of_groups(items))) < FEWEST:
        what = "training images" if count == len(items) else "groups of training images"
        raise AdaptError(f"there are {count} {what}; a watch needs {FEWEST} or more: leave it out")
    if tasks.of(items).one_class and len(model.class_names) > MOST_CLASSES:
        raise AdaptError(
            f"there are {len(model.class_names):,} classes; a watch takes at most {MOST_CLASSES}: leave it out"
        )


def watch_of(model: Adapted, items: Sequence[Item], inference: Inference | None = None) -> Watch:
    """Return what the training images `items` look like to the frozen backbone of `model`; `model.watch` takes it.

    It is of one image of each group, and of at most 1,000, drawn at random. Raises AdaptError like `check_watch`.
    """
    check_watch(model, items)
    drawn = _of_groups(items)[:MOST]
    classes = len(model.class_names) if tasks.of(items).one_class else 1
    return Watch.of(*_looked_at(model, drawn, inference or Inference()), classes=max(classes, 1))


def windows_of(model: Adapted, items: Sequence[Item], inference: Inference | None = None) -> list[Window]:
    """Return how windows of labelled `items`, in a random order, compare with the training images.

    Each group gives one image. There are none without a watch. Images are decoded once more for it, as features may
    come from the cache.
    """
    if model.watch is None or of_texts(items) or has_bags(items):
        return []
    items = _of_groups(items)
    windows = Windows(model.watch, at_once=len(items))
    sightings = model.watch.look(*_looked_at(model, items, inference or Inference()))
    compared = [windows.add(each, item.name) for each, item in zip(sightings, items, strict=True)]
    return [*chain(*compared), *windows.rest()]


def _of_groups(items: Sequence[Item]) -> list[Item]:
    """Return one item of each group, drawn at random, in a random order: others of a group are no further evidence."""
    drawn = Random(0).sample([*items], len(items))
    return [*{item.kept_with: item for item in drawn}.values()]


def _looked_at(model: Adapted, items: Sequence[Item], inference: Inference) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the properties `(n, 14)` of the items' images, their frozen features if the method needs no others.

    Their classes `(n,)` follow, all 0 where an image has no single one.
    """
    assert isinstance(model, ImageModel)
    pixels, transform = list[Tensor](), model.backbone.transform(train=False)
    for batch, _ in loader(items, transform, 64, train=False, workers=inference.workers):
        pixels.append(properties(batch))
        if inference.progress is not None:
            inference.progress(sum(map(len, pixels)), len(items))
    task, features = tasks.of(items), None
    if keeps_features(model, True) and not model.method.views:
        features = item_features(model, items, workers=inference.workers, cache=inference.cache)
    known = task.one_class and model.class_names
    labels = task.numbers(items, model.class_names) if known else torch.zeros(len(items)).long()
    return torch.cat(pixels), features, labels
