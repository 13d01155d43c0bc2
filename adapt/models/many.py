"""Predictions by several adapted models on the same images; models that share a backbone share its work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.decoding.images import each_of, in_batches, open_image
from adapt.data.decoding.pictures import turns
from adapt.methods.base import BlockInputs
from adapt.models.base import Adapted, evaluating, is_native
from adapt.models.image_model import ImageModel
from adapt.models.prediction import Prediction, Query

if TYPE_CHECKING:
    from adapt.models.wrap import Model

Prepared = tuple[Any, ...]  # an image as each group of models reads it


def predict_many(
    models: Sequence[Model],
    images: object,
    top_k: int = 5,
    batch_size: int = 64,
    *,
    threshold: float | None = None,
    sets: float | None = None,
    features: bool = False,
    urls: bool = False,
) -> list[tuple[Prediction, ...]]:
    """Return a tuple of all models' predictions for each image; `images` is as in `Adapted.predict`.

    Models that share a backbone (see `adapt.load_many`) preprocess an image once. Models that do not edit the vision
    tower share image features, and models that edit later blocks share the earlier blocks. Raises AdaptError in the
    cases that `predict` lists, and for a model that does not classify.
    """
    query = Query(top_k, threshold, features, sets=sets)
    return list(SideBySide(models).ask(images, query, batch_size, urls=urls))


class SideBySide:
    """Several models that classify the same images, where all images belong to one stream.

    Raises AdaptError if the list of models is empty or contains a model that does not classify.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = [model if model.memory is not None else model.stream() for model in _classifiers(models)]
        groups: dict[tuple[object, ...], dict[int, Adapted]] = {}
        for index, model in enumerate(self._models):  # by backbone and preprocessing
            prepared = model.preparation if is_native(model) else ()
            groups.setdefault((*model.backbone.sees, model.method.views, *prepared), {})[index] = model
        self._groups = list(groups.values())
        self._readers = [next(iter(group.values())) for group in self._groups]
        self._transforms = [model.transform() for model in self._readers]

    def ask(
        self, images: object, query: Query, batch_size: int = 64, *, urls: bool = False
    ) -> Iterator[tuple[Prediction, ...]]:
        """Yield a tuple of all models' predictions for each image, with only one batch of images in memory."""
        self.check_query(query)
        pixels = (self.pixels(image, urls=urls) for image in each_of(images))
        for batch in in_batches(pixels, max(1, batch_size // (1 + self.views))):
            yield from self.predictions(batch, query)

    def check_query(self, query: Query) -> None:
        """Raise AdaptError if one of the models cannot answer the query. Maps are of the models that draw some."""
        for model, own in zip(self._models, self._queries(query), strict=True):
            model.check_query(own)
            if own.sets is not None:
                model.sets_at(own.sets)

    def _queries(self, query: Query) -> list[Query]:
        """Return the query of each model, without maps for those that draw none, if any does."""
        any_draws = any(model.draws_maps for model in self._models)
        return [replace(query, maps=query.maps and (model.draws_maps or not any_draws)) for model in self._models]

    def map_pixels(self, query: Query) -> int:
        """Return the number of pixels in all maps of an image that the query asks for."""
        asked = zip(self._models, self._queries(query), strict=True)
        return sum(model.backbone.preprocess.size**2 for model, own in asked if own.maps)

    @property
    def views(self) -> int:
        """The largest number of random views that one of the models reads in addition to the image itself."""
        return max(model.method.views for model in self._models)

    @property
    def remembers(self) -> bool:
        """Whether the predictions of any of the models depend on earlier images."""
        return any(model.memory is not None for model in self._models)

    @property
    def native(self) -> list[Adapted[Any]]:
        """The models on native vision-language models, through whose decoder images pass, so that a pass takes long."""
        return [model for model in self._models if model.backbone.as_decoded]

    @property
    def turnings(self) -> set[bool]:
        """The models' settings for turning images upright by EXIF, as a set: {True}, {False} or {False, True}."""
        return set(map(turns, self._transforms))

    def pixels(self, image: object, *, urls: bool = False, name: str = "in memory") -> Prepared:
        """Return an image preprocessed for each group of models, `(3, h, w)` or with v views `(1 + v, 3, h, w)`.

        `image` is in any form that `open_image` accepts. The models of a group share a backbone and preprocessing. A
        native vision-language model prepares images with the text, so its group gets the PIL image itself, unless it is
        large (see `ChatModel.prepared`).
        """
        opened = {turned: open_image(image, turned=turned, urls=urls, name=name) for turned in self.turnings}
        read: list[Any] = [transform(opened[turns(transform)]) for transform in self._transforms]
        return tuple(
            model.prepared(own) if is_native(model) else own for model, own in zip(self._readers, read, strict=True)
        )

    def predictions(self, pixels: Sequence[Prepared], query: Query) -> Iterator[tuple[Prediction, ...]]:
        """Yield a tuple of all models' predictions for each image in the preprocessed batch `pixels`.

        The `query` was checked.
        """
        queries = self._queries(query)
        by_model: dict[int, list[Prediction]] = {}
        for group, own in zip(self._groups, zip(*pixels, strict=True), strict=True):
            by_model |= _predicted(group, list(own), queries)
        return zip(*(by_model[index] for index in range(len(self._models))), strict=True)


def _classifiers(models: Sequence[Model]) -> list[Adapted]:
    """Return `models` as a list. Raises AdaptError for an empty list, and for a model that does not classify."""
    if isinstance(models, Adapted):
        raise AdaptError("predict_many got one model; expected a list of models: give a list, or call model.predict")
    if not models:
        raise AdaptError("predict_many got no model: give at least one model, such as adapt.load_many([ADAPTER])")
    for model in models:
        if not isinstance(model, Adapted):
            raise AdaptError(f"predict_many got {brief(model)}; expected models, as adapt.load_many(PATHS) returns")
        if not model.classifies:
            raise AdaptError(
                f"the model with {model.method.name} on {model.backbone.describe()} answers questions; expected models "
                "that classify: ask it by itself, with a question"
            )
    return list(models)


def _predicted(models: dict[int, Adapted], images: list[Any], queries: Sequence[Query]) -> dict[int, list[Prediction]]:
    """Return a batch's predictions by model index, for models that share a backbone and preprocessing."""
    pixels = next(iter(models.values())).batched(images)
    with ExitStack() as stack, torch.no_grad():
        # first those whose modes change
        for model in sorted(models.values(), key=lambda model: not any(each.training for each in model.modules())):
            stack.enter_context(evaluating(model))
        return {
            index: list(models[index]._predictions(pixels if queries[index].maps else inputs, queries[index]))
            for index, inputs in entering(models, pixels)
        }


def entering(models: dict[int, Adapted], pixels: Any) -> Iterator[tuple[int, Any]]:
    """Yield each model's index and input, which is images or the input tokens of the first block the model edits."""
    begins, inputs = dict.fromkeys(models, 0), pixels  # the first block that a model cannot share with others
    for index, model in models.items():
        alone = len(models) == 1 or model.method.views or "images" in model.method.reads
        if isinstance(model, ImageModel) and not alone:
            begins[index] = model.unedited_blocks
    for index in sorted(begins, key=lambda index: begins[index]):
        model = models[index]
        if begins[index] and isinstance(model, ImageModel) and isinstance(inputs, torch.Tensor | BlockInputs):
            inputs = model.block_inputs(inputs, begins[index])
        yield index, inputs
