"""Classifies a list of images with a model in its last state, as published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapt.data.decoding.loader import loader
from adapt.data.decoding.masks import check_masks, mask_of
from adapt.data.split import Item, of_several
from adapt.errors import AdaptError
from adapt.evaluation.maps import MapScores
from adapt.evaluation.multi_label import MultiLabelScores, prior_bias
from adapt.evaluation.numbers import GradedScores
from adapt.evaluation.retrieval import retrieve
from adapt.evaluation.scores import Scores
from adapt.features import item_features, keeps_features, of_texts, several_labels_of, view_features
from adapt.methods.base.normal import normal_label
from adapt.models.base import Adapted, evaluating
from adapt.models.classifier import AdaptedModel
from adapt.models.prediction import decided, finite
from adapt.progress import Progress

Answer = TypeVar("Answer")

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
    """Classifies `items`, by one class each or several, answers their questions, or finds what belongs together.

    Features of an unedited vision tower come from the cache.

    Where the method remembers a stream of images, they are one, in their order.

    Raises AdaptError where labels do not belong to the model's classes, or a file cannot be decoded.
    """
    check_labels(model, items)
    _check_kind(model, items)
    if of_several(items):
        batches = [batch.cpu() for batch in logits(model, items, workers=workers, cache=cache, progress=progress)]
        probabilities = model.answers.probabilities(finite(torch.cat(batches)).float())
        return MultiLabelScores.of(items, probabilities, model.class_names)
    if items[0].is_pair:
        assert isinstance(model, AdaptedModel)
        return retrieve(model, items, workers=workers, progress=progress)
    if _has_maps(model, items):
        assert isinstance(model, AdaptedModel)
        return _mapped(model, items, workers, progress)
    if model.class_names:
        answered = logits(model, items, workers=workers, cache=cache, progress=progress)
        found, numbers = [], list[Tensor]()
        for batch in answered:
            found.append(decided(batch, model.class_names))
            if items[0].target is not None and (said := model.method.score(batch)) is not None:
                numbers.append(said)
    else:
        found, numbers = list(_decoded(model, model.decide, items, workers, progress)), []
    scores = _scores(items, found)
    return GradedScores.of(scores, items, torch.cat(numbers)) if numbers else scores


def _scores(items: Sequence[Item], found: Sequence[tuple[list[str], list[float]]]) -> Scores:
    """Those of `items`, by what was said of each batch of them, and how surely."""
    return Scores(
        paths=tuple(item.name for item in items),
        actual=tuple(item.class_name for item in items),
        predicted=tuple(answer for answers, _ in found for answer in answers),
        confidence=tuple(value for _, values in found for value in values),
        questions=tuple(item.question for item in items if item.question),
    )


def _has_maps(model: Adapted[Any], items: Sequence[Item]) -> bool:
    """Whether the model says where images are not as they should be, and the items know it."""
    return model.method.normal_class is not None and any(item.mask for item in items)


def check_maps(model: Adapted[Any], items: Sequence[Item]) -> None:
    """AdaptError for what keeps maps from being compared with the masks of items, where there are both."""
    if _has_maps(model, items):
        normal_label(model.method, model.class_names)
        check_masks(items, model.backbone.preprocess.turned)


def _mapped(model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None) -> MapScores:
    """Scores with the areas of maps, of items that have masks."""
    check_maps(model, items)
    normal = normal_label(model.method, model.class_names)
    found = list(_decoded(model, model.logits_and_maps, items, workers, progress))
    abnormal = 1 - torch.cat([logits for logits, _ in found]).float().softmax(-1)[:, normal].cpu()
    maps, place = torch.cat([maps for _, maps in found]), model.backbone.preprocess.placing("nearest")
    size, turned = (maps.shape[1], maps.shape[2]), model.backbone.preprocess.turned
    masks = torch.stack([mask_of(item, place, size, turned) for item in items])
    scores = _scores(items, [decided(logits, model.class_names) for logits, _ in found])
    return MapScores.of(scores, abnormal, maps, masks)


def logits(
    model: Adapted[Any],
    items: Sequence[Item],
    *,
    workers: int = 2,
    cache: bool = True,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """What `model` makes of `items`, in batches `(b, n)`; as `evaluate`, of a model that tells classes apart."""
    model = model.stream()
    if keeps_features(model, cache or of_texts(items)):
        return _from_features(model, items, workers, progress)
    return _decoded(model, model.batch_logits, items, workers, progress)


def set_prior_bias(model: AdaptedModel, items: Sequence[Item], *, workers: int = 2, cache: bool = True) -> None:
    """Lets a model answer in the kind of `items`: where these have several classes, each class by itself."""
    [bias] = prior_biases(model, items, workers=workers, cache=cache)
    model.answers = replace(model.answers, logit_bias=bias)


def prior_biases(
    model: AdaptedModel,
    items: Sequence[Item],
    scales: Sequence[float] = (1.0,),
    *,
    workers: int = 2,
    cache: bool = True,
) -> list[float | None]:
    """What a model that gives one class an image is to add to its logits, or to as many times them, to give several.

    As many probabilities as `items` have classes add up then. None where these have one class each.
    """
    if not of_several(items):
        return [None] * len(scales)
    found = torch.cat([batch.cpu() for batch in logits(model, items, workers=workers, cache=cache)])
    truth, own = several_labels_of(items, len(model.class_names)), model.backbone.logit_bias
    return [prior_bias((found - own) * scale + own, truth) for scale in scales]


def _from_features(
    model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None
) -> Iterator[Tensor]:
    if model.method.views:
        yield from _from_views(model, items, workers, progress)
        return
    features = item_features(model, items, workers=workers, progress=progress).to(model.backbone.device)
    for part in features.split(FEATURES_PER_IMAGE if model.method.per_image else FEATURES):
        with evaluating(model), torch.no_grad():
            found = model.logits(part)
        yield found


def _from_views(
    model: AdaptedModel, items: Sequence[Item], workers: int, progress: Progress | None
) -> Iterator[Tensor]:
    """Some images at a time: each has many features."""
    for start in range(0, len(items), FEATURES):
        features = view_features(model, items[start : start + FEATURES], workers=workers, progress=progress)
        for part in features.to(model.backbone.device).split(FEATURES_PER_IMAGE):
            with evaluating(model), torch.no_grad():
                found = model.logits(part[:, 0], part[:, 1:])
            yield found


def _decoded(
    model: Adapted[Any],
    answer: Callable[[Any], Answer],
    items: Sequence[Item],
    workers: int,
    progress: Progress | None,
) -> Iterator[Answer]:
    """What `answer` makes of each batch of decoded images."""
    transform = model.transform()
    done = 0
    size = max(1, BATCH_SIZE // (1 + model.method.views))
    for inputs, labels in loader(items, transform, size, train=False, workers=workers):
        with evaluating(model), torch.no_grad():  # for a batch at a time, so that other threads' calls come in between
            found = answer(inputs)
        yield found
        done += len(labels)
        if progress is not None:
            progress(done, len(items))


def check_labels(model: Adapted[Any], items: Sequence[Item]) -> None:
    """Raises AdaptError unless each item's class is the model's of that label, and a question is there if need be."""
    if not items:
        raise AdaptError("there are no images to classify: this part of the data is empty")
    if items[0].is_pair or (isinstance(model, AdaptedModel) and not model.class_names):
        _check_pairs(model, items[0])
        return
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
        if item.labels == ():
            continue
        if max(item.every_label) >= len(names) or names[item.label] != item.class_name:
            raise AdaptError(
                f"{item.name} is of class {item.class_name!r}, label {item.label}, which the model calls otherwise; "
                f"wrap or load the model with the data's own class names"
            )


def _check_kind(model: Adapted[Any], items: Sequence[Item]) -> None:
    """AdaptError where images have one class, and the model gives them several, or the other way round."""
    if of_several(items) and not model.answers.several:
        raise AdaptError(
            f"the data has images of several classes, and this {model.method.name} gives each one: train it on such "
            "data"
        )
    if model.answers.several and not of_several(items):
        raise AdaptError(
            f"this {model.method.name} learned to find several classes in an image, and the data has one of each: give "
            "a .csv with a column labels"
        )


def _check_pairs(model: Adapted[Any], item: Item) -> None:
    """AdaptError unless both the model and the data are of pairs."""
    if not isinstance(model, AdaptedModel):
        raise AdaptError(
            f"the data are pairs of images and texts, and {model.backbone.describe()} compares none: take a CLIP"
        )
    if item.class_name:
        raise AdaptError(
            f"the model tells no classes apart, and the data has some ({item.class_name!r}): give it their names, as "
            "class_names or by --data-classes"
        )
    if model.class_names or not model.method.of_pairs:
        raise AdaptError(
            f"the data are pairs of images and texts, which have no classes: take a method that learns from such, as "
            f"lora, without class names; this is {model.method.name} with {len(model.class_names)} classes"
        )
