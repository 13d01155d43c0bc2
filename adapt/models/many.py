"""Many adapted models over the same images: what their backbone does for all of them is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapt.errors import AdaptError
from adapt.models.base import Adapted, evaluating
from adapt.models.classifier import AdaptedModel
from adapt.models.prediction import Prediction, batches_of, check_count
from adapt.shown import brief

if TYPE_CHECKING:
    from adapt.models.wrap import Model


def predict_many(
    models: Sequence[Model], images: Iterable[Any] | Any, top_k: int = 5, batch_size: int = 64
) -> list[tuple[Prediction, ...]]:
    """What each of `models` says of each image (PIL images, paths, or an iterable of them): a tuple an image.

    Models that share a backbone (see `adapt.load_many`) read an image once. Those that leave the vision tower alone
    share its features, and those that edit later blocks the blocks before. Raises AdaptError naming an unreadable
    file, and for a model that does not classify.
    """
    return list(predict_many_stream(models, images, top_k, batch_size))


def predict_many_stream(
    models: Sequence[Model], images: Iterable[Any] | Any, top_k: int = 5, batch_size: int = 64
) -> Iterator[tuple[Prediction, ...]]:
    """As `predict_many`, one image at a time, holding one batch of images."""
    from adapt.data.decoding.images import open_image

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
        asked.append(model if model.memory is not None else model.stream())
    check_count(top_k)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, model in enumerate(asked):
        groups.setdefault((id(model.backbone), model.method.views), []).append(index)
    views = max((model.method.views for model in asked), default=0)
    for batch in batches_of(images, max(1, batch_size // (1 + views))):
        pictures = [open_image(image) for image in batch]
        found: dict[int, list[Prediction]] = {}
        for group in groups.values():
            found |= _predicted({index: asked[index] for index in group}, pictures, top_k)
        yield from zip(*(found[index] for index in range(len(asked))), strict=True)


def _predicted(models: dict[int, AdaptedModel], pictures: Sequence[Any], top_k: int) -> dict[int, list[Prediction]]:
    """The predictions of models that share a backbone, and how they see images."""
    one = next(iter(models.values()))
    transform = one.transform()
    pixels = torch.stack([transform(picture) for picture in pictures]).to(one.backbone.device)
    with ExitStack() as stack, torch.no_grad():
        for model in sorted(models.values(), key=_keeps_modes):  # none changes once one is kept
            stack.enter_context(evaluating(model))
        entering = _entering(models, pixels)
        return {index: list(models[index]._predictions(inputs, top_k, None)) for index, inputs in entering}


def _entering(models: dict[int, AdaptedModel], pixels: Tensor) -> Iterator[tuple[int, Any]]:
    """What each model is given: the images, or how far the frozen blocks that it shares have got with them."""
    begins = {index: _begins(model) for index, model in models.items()}
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
