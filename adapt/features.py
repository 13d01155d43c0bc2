"""Features of a data set's images, from the cache on disk or computed, or of the texts in their place."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Transform
from adapt.backbones.transform_key import transform_key
from adapt.data.decoding.cache import FeatureCache
from adapt.data.decoding.image_set import loader
from adapt.data.item import Item
from adapt.engine.memory import free_bytes, readable_bytes
from adapt.errors import AdaptError
from adapt.methods.base.space import Projects
from adapt.methods.base.traits import has_trait
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.progress import Progress

logger = logging.getLogger("adapt")
VIEWS_AT_ONCE = 64  # pictures that are encoded together where each image has several


def keeps_features(model: Adapted, cache: bool) -> TypeGuard[AdaptedModel]:
    """Whether the cache may serve: classes by features of a vision tower that nothing edits, and no need of images."""
    if not (cache and isinstance(model, AdaptedModel)):
        return False
    own_space = has_trait(model.method, Projects)  # the cache's features are the backbone's own
    return not ("vision" in model.method.touches or own_space or "images" in model.method.reads)


def of_texts(items: Sequence[Item]) -> bool:
    """Whether texts stand in the place of images; a part of a data set has one of both."""
    return bool(items) and not items[0].paths


def item_features(
    model: AdaptedModel,
    items: Sequence[Item],
    *,
    workers: int,
    cache: bool = True,
    views: int = 0,
    seed: int = 0,
    unit: bool = True,
    projected: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Features, of `unit` length or as the tower gives them, `(n, e)`, or `(n, views, e)`.

    Not `projected` they are those of the backbone before its last projection `(..., d)`, whatever the method edits. Of
    texts in the place of images they are the text tower's, which have neither views nor such a projection.

    By the cache on disk, unless it is switched off or the transform has no key. Views need the cache. Raises AdaptError
    where the method edits the vision tower: its features are not the backbone's, which the cache holds.
    """
    if of_texts(items):
        of_images = "random views" if views else "" if projected else "features before the last projection"
        return _text_features(model, items, unit, of_images)
    backbone = model.backbone
    if projected:
        _check_unedited(model)
    transform = backbone.transform(train=views > 0)

    def encode(images: Tensor) -> Tensor:
        images = images.to(backbone.device)
        with _in_its_own_precision(model):
            return (model.image_features(images, unit) if projected else model.read_features(images, unit)).float()

    if not cache:
        with torch.no_grad():
            decoded = loader(items, transform, 64, train=False, workers=workers)
            return torch.cat([encode(images).cpu() for images, _ in decoded])
    read = f"{seed if views else 0}" + ("" if unit else "/raw") + ("" if projected else "/not projected")
    key = _key(backbone, [transform], read)
    return FeatureCache().features(
        items,
        transform,
        encode,
        key,
        views=views,
        workers=workers,
        progress=progress,
    )


def _text_features(model: AdaptedModel, items: Sequence[Item], unit: bool, of_images: str) -> Tensor:
    """Those of the texts. AdaptError where `of_images` says what was asked for that texts do not have."""
    if of_images:
        raise AdaptError(
            f"{model.method.name} takes {of_images} of images, and the data has texts in their place: set method.views "
            "or train.views to none, where it has such"
        )
    return model.text_features([item.text for item in items], unit).float().cpu()


def view_features(model: AdaptedModel, items: Sequence[Item], *, workers: int, progress: Progress | None) -> Tensor:
    """Unit-length features `(n, v, e)` of what the method decides on: each image itself, then its views."""
    _check_unedited(model)
    backbone, transform = model.backbone, model.transform()
    views = 1 + model.method.views

    def encode(images: Tensor) -> Tensor:
        with _in_its_own_precision(model):
            return model.image_features(images.flatten(0, 1).to(backbone.device)).float().reshape(len(images), -1)

    transforms = [backbone.transform(train=train) for train in (False, True)]
    key = _key(backbone, transforms, f"{views} as they are decided on")
    size = max(1, VIEWS_AT_ONCE // views)
    features = FeatureCache().features(
        items, transform, encode, key, batch_size=size, workers=workers, progress=progress
    )
    return features.unflatten(-1, (views, -1))


def block_inputs(
    model: AdaptedModel, items: Sequence[Item], block: int, *, workers: int, progress: Progress | None
) -> Tensor | None:
    """What that block of the vision tower reads `(n, l, d)` of each image, by the cache on disk.

    None, and a word about it, where that is more than the cache may hold, or than half of what is free in memory.
    """
    backbone, transform = model.backbone, model.backbone.transform(train=False)
    width = backbone.tower("vision").width
    pixels = torch.zeros(1, 3, *[backbone.preprocess.size] * 2, device=backbone.device)
    cache, needed = FeatureCache(), len(items) * model.block_inputs(pixels, block).tokens.nbytes
    limits = {"the cache may hold": cache.max_bytes, "half of the free memory is": free_bytes(torch.device("cpu")) // 2}
    what = f"inputs of block {block} of {len(items):,} images take {readable_bytes(needed)}"
    for limit, size in limits.items():
        if needed > size:
            logger.warning(
                "%s, and %s %s: the blocks before it are computed in every step", what, limit, readable_bytes(size)
            )
            return None
    logger.info("%s of the cache, so that no step computes the blocks before it", what)

    def encode(images: Tensor) -> Tensor:
        with _in_its_own_precision(model):
            return model.block_inputs(images.to(backbone.device), block).tokens.flatten(1)

    key = _key(backbone, [transform], f"inputs of block {block}")
    return cache.features(items, transform, encode, key, workers=workers, progress=progress).unflatten(-1, (-1, width))


def _key(backbone: DualEncoder, transforms: Sequence[Transform], read: str) -> str | None:
    """All that features of an image depend on, `read` being what is read of it; None where a transform is not known."""
    keys = [transform_key(each) for each in transforms]
    known = [key for key in keys if key is not None]
    if len(known) < len(keys):
        _note_unknown()
        return None
    return "/".join((backbone.content(), *known, read))


@functools.cache
def _note_unknown() -> None:
    """Once for a process."""
    logger.warning(
        "images are read by code that is neither torchvision's nor open_clip's: their features are not kept on disk, "
        "and are computed each time"
    )


def _in_its_own_precision(model: AdaptedModel) -> torch.autocast:
    """Whatever autocast the caller is in: what is kept serves others, who are in none."""
    return torch.autocast(model.backbone.device.type, enabled=False)


def _check_unedited(model: AdaptedModel) -> None:
    if "vision" in model.method.touches:
        raise AdaptError(
            f"{model.method.name} edits the vision tower: features for it would not be the backbone's own. Read them "
            "off a step, as step.features or step.frozen_features"
        )
