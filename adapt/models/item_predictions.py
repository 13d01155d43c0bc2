"""Predictions for bags, items of several images of one thing, with the contribution of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.bags import Bags
from adapt.data.decoding.images import open_image
from adapt.data.decoding.pictures import turns
from adapt.data.pooling import bag_mean
from adapt.methods.base import ImageStep
from adapt.methods.base.traits import PoolsBags, trait
from adapt.models.base import evaluating
from adapt.models.prediction import ImageOfBag, Prediction, Wanted, predictions

if TYPE_CHECKING:
    from adapt.models.image_model import ImageModel


def bag_predictions(
    model: ImageModel, items: Iterable[Sequence[object]], wanted: Wanted, batch_size: int, urls: bool
) -> Iterator[Prediction]:
    """Yield a prediction for each item, a sequence of images; images are as in `predict`."""
    model.check_takes_bags()
    model = model if model.memory is not None else model.stream()
    for bags in _batches(model, items, batch_size, urls):
        with evaluating(model), torch.no_grad():
            batch = list(_predictions(model, bags, wanted))
        yield from batch


def _batches(model: ImageModel, items: Iterable[Sequence[object]], size: int, urls: bool) -> Iterator[Bags]:
    """Yield batches of about `size` preprocessed images, without dividing an item."""
    transform = model.transform()
    turned, images, counts = turns(transform), list[Tensor](), list[int]()
    for number, item in enumerate(items):
        if isinstance(item, str | bytes) or not isinstance(item, Sequence) or not item:
            raise AdaptError(f"item {number} is {brief(item)}; expected a list of one or more images for each item")
        images += [transform(open_image(image, turned=turned, urls=urls)) for image in item]
        counts.append(len(item))
        if len(images) >= size:
            yield Bags(torch.stack(images), torch.tensor(counts))
            images, counts = [], []
    if counts:
        yield Bags(torch.stack(images), torch.tensor(counts))


def _predictions(model: ImageModel, bags: Bags, wanted: Wanted) -> Iterator[Prediction]:
    """Yield the predictions for a batch of bags, whose images pass through the tower once."""
    counts, by_logits = bags.counts.to(model.backbone.device), model.answers.pooling == "logits"
    whole = ImageStep(model, bags)
    if by_logits:
        of_each = model.answers.of(ImageStep(model, bags.images))
        logits = bag_mean(of_each, counts)
    else:
        logits = model.answers.of(whole)
        alone = ImageStep(model.without_memory(), bags.images)  # a stream remembers the bags
        alone.features = whole.image_features
        of_each = model.answers.of(alone)
    features = whole.features if wanted.features else None
    probabilities = model.answers.probabilities(of_each.float())
    pools = trait(model.method, PoolsBags)
    if pools is None or by_logits:
        weights = (1 / counts).repeat_interleave(counts)
    else:
        weights = pools.weights(whole.image_features, counts)
    sizes = bags.counts.tolist()
    for prediction, own, shares in zip(
        predictions(logits, model.class_names, wanted, model.answers, features, model.grades(logits)),
        probabilities.split(sizes),
        weights.split(sizes),
        strict=True,
    ):
        best = model.class_names.index(prediction.top[0][0])
        images = tuple(map(ImageOfBag, own[:, best].tolist(), shares.tolist()))
        yield replace(prediction, images=images)
