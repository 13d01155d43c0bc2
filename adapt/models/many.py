"""Many adapted models over the same images: what their backbone does for all of them is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapt.data.decoding.images import each_of, in_batches, open_image
from adapt.data.decoding.orientation import turns
from adapt.errors import AdaptError
from adapt.models.base import Adapted, evaluating
from adapt.models.classifier import AdaptedModel
from adapt.models.prediction import Prediction, Wanted
from adapt.shown import brief

if TYPE_CHECKING:
    from adapt.models.wrap import Model


def predict_many(
    models: Sequence[Model],
    images: Any,
    top_k: int = 5,
    batch_size: int = 64,
    *,
    threshold: float | None = None,
    features: bool = False,
    urls: bool = False,
) -> list[tuple[Prediction, ...]]:
    """What each of `models` says of each image, as `AdaptedModel.predict` takes them: a tuple an image.

    Models that share a backbone (see `adapt.load_many`) read an image once. Those that leave the vision tower alone
    share its features, and those that edit later blocks the blocks before. Raises AdaptError as `predict` does, and for
    a model that does not classify.
    """
    return list(
        predict_many_stream(models, images, top_k, batch_size, threshold=threshold, features=features, urls=urls)
    )


def predict_many_stream(
    models: Sequence[Model],
    images: Any,
    top_k: int = 5,
    batch_size: int = 64,
    *,
    threshold: float | None = None,
    features: bool = False,
    urls: bool = False,
) -> Iterator[tuple[Prediction, ...]]:
    """As `predict_many`, one image at a time, holding one batch of images."""
    wanted, together = Wanted(top_k, threshold, features), SideBySide(models)
    pixels = (together.pixels(image, urls=urls) for image in each_of(images))
    for batch in in_batches(pixels, max(1, batch_size // (1 + together.views))):
        yield from together.predictions(batch, wanted)


class SideBySide:
    """Models that are asked about the same images, all of them as one stream.

    Raises AdaptError for no model, and for one that does not classify.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = [model if model.memory is not None else model.stream() for model in _classifiers(models)]
        groups: dict[tuple[Any, ...], dict[int, AdaptedModel]] = {}
        for index, model in enumerate(self._models):  # by backbone, and by how images are read
            groups.setdefault((*model.backbone.sees, model.method.views), {})[index] = model
        self._groups = list(groups.values())
        self._transforms = [next(iter(group.values())).transform() for group in self._groups]

    @property
    def views(self) -> int:
        """The most views of an image that one of the models looks at, beside the image itself."""
        return max(model.method.views for model in self._models)

    @property
    def remembers(self) -> bool:
        """Whether an answer depends on the images before it."""
        return any(model.memory is not None for model in self._models)

    @property
    def turnings(self) -> set[bool]:
        """Whether images are turned upright by EXIF; both where the models differ in it."""
        return set(map(turns, self._transforms))

    def pixels(self, image: Any, *, urls: bool = False, name: str = "in memory") -> tuple[Tensor, ...]:
        """An image, as `open_image` takes it, as the models read it: `(3, h, w)`, or `(1 + v, 3, h, w)`, for each group
        that reads it alike.
        """
        opened = {turned: open_image(image, turned=turned, urls=urls, name=name) for turned in self.turnings}
        return tuple(transform(opened[turns(transform)]) for transform in self._transforms)

    def predictions(self, pixels: Sequence[tuple[Tensor, ...]], wanted: Wanted) -> Iterator[tuple[Prediction, ...]]:
        """What each model says of each image of one batch, given its `pixels`."""
        found: dict[int, list[Prediction]] = {}
        for group, own in zip(self._groups, zip(*pixels, strict=True), strict=True):
            found |= _predicted(group, torch.stack(own), wanted)
        return zip(*(found[index] for index in range(len(self._models))), strict=True)


def _classifiers(models: Sequence[Model]) -> list[AdaptedModel]:
    """The models as they are. AdaptError, by name, for what is none that classifies."""
    if isinstance(models, AdaptedModel):
        raise AdaptError("predict_many got one model; expected a list of them, or call its predict")
    if not models:
        raise AdaptError("there is no model to ask: give at least one, such as adapt.load_many([ADAPTER])")
    asked: list[AdaptedModel] = []
    for model in models:
        if not isinstance(model, Adapted):
            raise AdaptError(f"predict_many got {brief(model)}; expected models, as adapt.load_many(PATHS) gives them")
        if not isinstance(model, AdaptedModel):
            raise AdaptError(
                f"the {model.method.name} on {model.backbone.describe()} answers questions: ask it by itself, by "
                "predict(images, question=...)"
            )
        asked.append(model)
    return asked


def _predicted(models: dict[int, AdaptedModel], pixels: Tensor, wanted: Wanted) -> dict[int, list[Prediction]]:
    """The predictions of models that share a backbone, and how they see images."""
    pixels = pixels.to(next(iter(models.values())).backbone.device)
    with ExitStack() as stack, torch.no_grad():
        for model in sorted(models.values(), key=_keeps_modes):  # none changes once one is kept
            stack.enter_context(evaluating(model))
        return {index: list(models[index]._predictions(inputs, wanted)) for index, inputs in _entering(models, pixels)}


def _entering(models: dict[int, AdaptedModel], pixels: Tensor) -> Iterator[tuple[int, Any]]:
    """What each model is given: the images, or how far the frozen blocks that it shares have got with them."""
    begins = {index: _begins(model) if len(models) > 1 else 0 for index, model in models.items()}  # one shares nothing
    inputs: Any = pixels
    for index in sorted(begins, key=lambda index: begins[index]):
        if begins[index]:
            inputs = models[index].block_inputs(inputs, begins[index])
        yield index, inputs


def _keeps_modes(model: AdaptedModel) -> bool:
    """Whether all of it is in evaluation mode."""
    return not any(module.training for module in model.modules())


def _begins(model: AdaptedModel) -> int:
    """The first block of the vision tower that a model needs by itself; 0 where it needs the images."""
    return 0 if model.method.views or "images" in model.method.reads else model.unedited_blocks
