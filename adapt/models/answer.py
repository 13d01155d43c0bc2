"""Answers to queries about more than each image by itself: items of several images, sets of images, and reasons.

A method's answer to an image of a set depends on the others. Reasons are the cosines of an image to the descriptors
(short phrases) of its classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from adapt.common.devices import moved
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.bags import Bags, bag_mean, has_bags
from adapt.data.decoding.images import open_image
from adapt.data.decoding.pictures import turns
from adapt.methods.base import BlockInputs, Encoded, ImageStep
from adapt.methods.base.traits import Explains, OverSet, PoolsBags, trait
from adapt.models.base import Adapted, evaluating
from adapt.models.prediction import ImageOfBag, Prediction, Query, finite, predictions, undecided

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.models.image_model import ImageModel

logger = logging.getLogger("adapt")


def answered(model: ImageModel, images: object, query: Query, batch_size: int, urls: bool) -> Iterator[Prediction]:
    """Return an iterator over the answers to a query that is not about each image by itself."""
    if query.items:
        return _of_items(model, cast("Iterable[Sequence[object]]", images), query, batch_size, urls)
    if query.sets is not None:
        return _transported(model, images, query, batch_size, urls)
    batches = model._of_batches(images, batch_size, urls, lambda model, x: model.image_features(x).cpu())
    encoded = torch.cat([torch.empty(0), *batches])
    logits = logits_together(model, encoded, query.at_a_time)
    kept = encoded if query.features else None
    return predictions(logits, model.class_names, query, model.answers, kept, model.grades(logits))


def _transported(model: ImageModel, images: object, query: Query, size: int, urls: bool) -> Iterator[Prediction]:
    """Yield the answers about images with sets of classes by Conf-OT, which takes the logits of each by itself."""
    assert query.sets is not None

    def compute(model: ImageModel, pixels: Tensor) -> list[Tensor]:
        step = model.step(pixels)
        return [model.answered(step).cpu(), step.features.cpu()]

    if found := [*model._of_batches(images, size, urls, compute)]:
        logits, encoded = map(torch.cat, zip(*found, strict=True))
        sets, answers = model.sets_at(query.sets, together=True).beside(finite(logits))
        settings = replace(model.answers, sets=sets)
        yield from predictions(answers, model.class_names, query, settings, encoded if query.features else None)


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


def check_descriptors(model: ImageModel) -> Explains:
    """Return the method that supplies class descriptors. Raises AdaptError if no method supplies descriptors."""
    explains = trait(model.method, Explains)
    if explains is None or not model.class_names:
        raise AdaptError(
            f"{model.method.name} does not decide by descriptors of classes, so predictions cannot be explained: use "
            "the method `descriptions`"
        )
    return explains


def explanations(model: ImageModel, pixels: Tensor | BlockInputs, query: Query) -> Iterator[Explanation]:
    """Yield the explained prediction for each of the images `(b, 3, h, w)`."""
    explains, step = check_descriptors(model), ImageStep(model, pixels)
    cosines = [step.features @ own.T for own in step.prompt_features]  # (b, m) of each class
    label = {name: number for number, name in enumerate(model.class_names)}
    for row, prediction in enumerate(predictions(model.answers.of(step), model.class_names, query, model.answers)):
        reasons = []
        for name, _ in prediction.top:
            own = cosines[label[name]][row].tolist()
            described = zip(explains.descriptors(name), own, strict=True)
            best_first = tuple(sorted(described, key=lambda each: -each[1]))
            reasons.append(Reasons(name, sum(own) / len(own), best_first))
        yield Explanation(prediction, tuple(reasons))


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
        encoded = moved(part, model.backbone.device)
        step = ImageStep(model, Encoded(encoded))
        step.features = encoded  # of the adapted tower already, not to be projected again
        with evaluating(model), torch.no_grad():
            doubts.append(method.doubt(step))
            answers.append(settings.adjusted(method.infer_set(step), step).cpu())
    for doubt in [*filter(None, doubts)][:1]:
        logger.warning("%s: %s: these answers may be worse than those image by image", model.method.name, doubt)
    return torch.cat(answers)


def _of_items(
    model: ImageModel, items: Iterable[Sequence[object]], query: Query, batch_size: int, urls: bool
) -> Iterator[Prediction]:
    """Yield a prediction for each item, a sequence of images, with the contribution of each image."""
    model = model if model.memory is not None else model.stream()
    for bags in _batches_of_bags(model, items, batch_size, urls):
        with evaluating(model), torch.no_grad():
            batch = list(_of_bags(model, bags, query))
        yield from batch


def _batches_of_bags(model: ImageModel, items: Iterable[Sequence[object]], size: int, urls: bool) -> Iterator[Bags]:
    """Yield batches of about `size` preprocessed images, without dividing an item."""
    transform = model.transform()
    turned, images, counts, names = turns(transform), list[Any](), list[int](), list[str]()
    for number, item in enumerate(items):
        if isinstance(item, str | bytes) or not isinstance(item, Sequence) or not item:
            raise AdaptError(f"item {number} is {brief(item)}; expected a list of one or more images for each item")
        for each in item:
            if isinstance(each, tuple) and not (len(each) == 2 and isinstance(each[0], str)):
                raise AdaptError(f"item {number} has {brief(each)}; expected an image, or its view's name and an image")
            name, image = each if isinstance(each, tuple) else ("", each)
            names.append(name)
            images.append(transform(open_image(image, turned=turned, urls=urls)))
        counts.append(len(item))
        if len(images) >= size:
            yield Bags(model.batched(images), torch.tensor(counts), tuple(names))
            images, counts, names = [], [], []
    if counts:
        yield Bags(model.batched(images), torch.tensor(counts), tuple(names))


def _of_bags(model: ImageModel, bags: Bags, query: Query) -> Iterator[Prediction]:
    """Yield the predictions for a batch of bags, whose images pass through the tower once."""
    counts, by_logits = bags.counts.to(model.backbone.device), model.answers.pooling == "logits"
    whole = ImageStep(model, bags)
    if by_logits:
        alone = ImageStep(model, bags.images)
        of_each = model.answers.of(alone)
        logits = bag_mean(of_each, counts)
        if alone.members is not None:
            whole.members = torch.stack([bag_mean(each, counts) for each in alone.members]).log_softmax(-1)
    else:
        logits = model.answers.of(whole)
        alone = ImageStep(model.without_memory(), bags.images)  # a stream remembers the bags
        alone.features = whole.image_features
        of_each = model.answers.of(alone)
    features, numbers = whole.features if query.features else None, model.grades(logits)
    probabilities = model.answers.probabilities(of_each.float())
    pools = trait(model.method, PoolsBags)
    if pools is None or by_logits:
        weights = (1 / counts).repeat_interleave(counts)
    else:
        weights = pools.weights(whole.image_features, counts, bags.view_names)
    sizes = bags.counts.tolist()
    for prediction, own, shares in zip(
        predictions(logits, model.class_names, query, model.answers, features, numbers, whole.members),
        probabilities.split(sizes),
        weights.split(sizes),
        strict=True,
    ):
        best = model.class_names.index(prediction.top[0][0])
        images = tuple(map(ImageOfBag, own[:, best].tolist(), shares.tolist()))
        answer = replace(prediction, images=images)
        yield answer if model.decides else undecided(answer)
