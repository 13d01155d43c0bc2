"""One whole training step of a method, with random weights of ViT-B/16's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.functional import normalize

import adapt
from adapt import methods
from adapt.methods.base import Encoded, total
from benchmarks.text import ARCHITECTURE, class_names, clip


def training_step(
    method: str,
    config: dict[str, object],
    classes: int,
    batch: int,
    fast: bool | None,
    *,
    cached: bool = False,
    path: Literal["fast", "plain"] | None = None,
    architecture: str = ARCHITECTURE,
) -> Callable[[], None]:
    """Return a forward, backward and optimiser step on images in memory (without decoding), or on cached features.

    `path` is the images' path through the vision tower, by default the one that `fast` selects.
    """
    backbone = clip(architecture)
    model = adapt.wrap(backbone, methods.find(method)(**config), class_names(classes), fast=fast)
    model.vision_path = path or model.vision_path
    optimizer = torch.optim.SGD(model.method.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    labels = torch.randint(classes, (batch,))
    images = torch.randn(batch, 3, 224, 224)
    features = normalize(torch.randn(batch, backbone.embed_dim), dim=-1)

    def step() -> None:
        optimizer.zero_grad()
        inputs = Encoded(features) if cached else images
        total(model.losses(model.step(inputs, labels))[0]).backward()
        optimizer.step()

    return step
