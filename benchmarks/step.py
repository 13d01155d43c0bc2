"""One whole training step of a method, at random weights of ViT-B/16's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from benchmarks.measure import Measured
from benchmarks.text import ARCHITECTURE, Row, class_names, clip


def training_step(
    method: str,
    config: dict[str, Any],
    classes: int,
    batch: int,
    fast: bool | None,
    cached: bool = False,
    path: Literal["fast", "plain"] | None = None,
    architecture: str = ARCHITECTURE,
) -> Callable[[], None]:
    """Forward, backward and an optimiser step on images in memory (decoding is left out), or on cached features.

    `path` is that of the images, by default as `fast` says.
    """
    import torch

    import adapt
    from adapt import methods
    from adapt.methods.base import Encoded, total

    backbone = clip(architecture)
    model = adapt.wrap(backbone, methods.find(method)(**config), class_names(classes), fast=fast)
    model.vision_path = path or model.vision_path
    optimizer = torch.optim.SGD(model.method.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    labels = torch.randint(classes, (batch,))
    images = torch.randn(batch, 3, 224, 224)
    features = torch.nn.functional.normalize(torch.randn(batch, backbone.embed_dim), dim=-1)

    def step() -> None:
        optimizer.zero_grad()
        inputs = Encoded(features) if cached else images
        total(model.losses(model.step(inputs, labels))[0]).backward()
        optimizer.step()

    return step


def row(classes: int, plain: Measured, fast: Measured, steps: int = 1, scaled: bool = False) -> Row:
    """One comparison over `steps` steps, `scaled` from one of them or not."""
    return {
        "classes": classes,
        "steps": steps,
        "plain_seconds": plain.seconds * steps,
        "plain_scaled": scaled,
        "fast_seconds": fast.seconds * steps,
        "ratio": plain.seconds / fast.seconds,
        "fast_peak_bytes": fast.peak_bytes,
        "plain_peak_bytes": plain.peak_bytes,
    }
