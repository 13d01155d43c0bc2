"""Image features of a data set, from the cache on disk or computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from adapt.data.decoding.cache import FeatureCache
from adapt.data.decoding.loader import loader
from adapt.data.decoding.transform_key import transform_key
from adapt.data.split import Item
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.progress import Progress


def keeps_features(model: Adapted[Any], cache: bool) -> TypeGuard[AdaptedModel]:
    """Whether the cache may serve the image features: those of classes, by a vision tower that nothing edits."""
    return cache and isinstance(model, AdaptedModel) and "vision" not in model.method.touches


def image_features(
    model: AdaptedModel,
    items: Sequence[Item],
    *,
    workers: int,
    cache: bool = True,
    views: int = 0,
    seed: int = 0,
    unit: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Features, of `unit` length or as the tower gives them, `(n, e)`, or `(n, views, e)`.

    By the cache on disk unless it is switched off. The vision tower must be unedited. Views need the cache.
    """
    backbone = model.backbone
    transform = backbone.transform(train=views > 0)

    def encode(images: Tensor) -> Tensor:
        return model.image_features(images.to(backbone.device), unit).float()

    if not cache:
        with torch.no_grad():
            decoded = loader(items, transform, 64, train=False, workers=workers)
            return torch.cat([encode(images).cpu() for images, _ in decoded])
    key = f"{backbone.content()}/{transform_key(transform)}/{seed if views else 0}" + ("" if unit else "/raw")
    return FeatureCache().features(
        items,
        transform,
        encode,
        key,
        views=views,
        workers=workers,
        progress=progress,
    )


def labels_of(items: Sequence[Item]) -> Tensor:
    """Labels `(n,)`."""
    return torch.tensor([item.label for item in items])
