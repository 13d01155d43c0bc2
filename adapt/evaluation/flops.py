"""Floating point operations of a forward pass, by torch's counter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adapt.adapted import Adapted
from adapt.model import AdaptedModel


def flops(compute: Callable[[], Any]) -> int:
    """Operations of `compute()`, a multiply-add counted as two; norms and activations are not counted.

    On the CPU the counter takes fused attention for nothing, so attention is computed by plain products meanwhile.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _unfused(), FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def image_flops(model: AdaptedModel) -> int:
    """Operations of the vision tower for one image."""
    backbone = model.backbone
    size = backbone.preprocess.size
    image = torch.zeros(1, 3, size, size, device=backbone.device, dtype=backbone.dtype)
    return flops(lambda: model.image_features(image))


def text_flops(model: AdaptedModel) -> float:
    """Operations of the text tower for one class: the mean over the model's classes, by the path that serves them."""
    fresh = model.with_classes(model.class_names)  # one that has no features yet
    features = torch.zeros(1, model.backbone.embed_dim, device=model.backbone.device, dtype=model.backbone.dtype)
    return flops(lambda: fresh.class_features(features)) / len(model.class_names)


_COUNTED: dict[str, Callable[[Any], float]] = {"vision": image_flops, "text": text_flops}


def block_flops(model: Adapted[Any]) -> tuple[float, dict[str, float]]:
    """Operations of the towers that are searched while all blocks are executed, and how many skipping each one saves.

    For one image and one class. The method's selection of blocks is left empty.
    """
    searcher: Any = model.method.searcher
    training = model.training
    model.eval()
    whole = {tower: _COUNTED[tower](model) for tower in dict.fromkeys(map(_tower, searcher.blocks))}
    saved = {}
    for name in searcher.blocks:
        searcher.select([name])
        saved[name] = whole[_tower(name)] - _COUNTED[_tower(name)](model)
    searcher.select(())
    model.train(training)
    return sum(whole.values()), saved


def _tower(block: str) -> str:
    return block.partition(".")[0]


@contextmanager
def _unfused() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
