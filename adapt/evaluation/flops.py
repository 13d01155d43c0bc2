"""Floating point operations of a forward pass, counted by torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import copy

import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adapt.models.base import Adapted, is_native
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.image_model import ImageModel

PICTURE = (448, 448)  # pixels, for models that read images of any size
QUESTION = "what is in the picture?"  # a short one, for models that answer questions


def flops(compute: Callable[[], object]) -> int:
    """Return the number of floating-point operations in `compute()`, counting a multiply-add as two operations.

    Norms and activations are not counted. Attention is computed as matrix products meanwhile, because torch's counter
    does not see fused attention on the CPU.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _unfused(), FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def image_flops(model: ImageModel) -> int:
    """Return the FLOPs of the vision tower for one image, computed by the library's own forward as in papers.

    The fast path needs fewer operations, because its last block computes only one token.
    """
    image, plain = model.backbone.blank(), copy(model)
    plain.vision_path = "plain"
    return flops(lambda: plain.image_features(image))


def text_flops(model: AdaptedModel) -> float:
    """Return the FLOPs that this model's text tower needs per class, averaged over all classes of the model."""
    fresh = model.with_classes(model.class_names)  # without cached class features
    features = torch.zeros(1, model.backbone.embed_dim, device=model.backbone.device, dtype=model.backbone.dtype)
    return flops(lambda: fresh.class_features(features)) / len(model.class_names)


def tower_flops(model: Adapted, towers: Collection[str]) -> float:
    """Return the FLOPs of `towers` for one image and one class, or of the full model if it answers questions."""
    if isinstance(model, ImageModel):
        of_tower: dict[str, Callable[..., float]] = {"vision": image_flops, "text": text_flops}
        return sum(of_tower[tower](model) for tower in towers)
    if is_native(model):
        return flops(lambda: model([[Image.new("RGB", PICTURE)]], [QUESTION]))
    image = model.backbone.blank()
    return flops(lambda: model(image, [QUESTION]))


def answer_flops(model: ImageModel) -> int:
    """Return the FLOPs that answering one image takes, once features of the classes are computed if they stay."""
    image = model.backbone.blank()
    with torch.no_grad():
        model(image)
    return flops(lambda: model(image))


@contextmanager
def _unfused() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
