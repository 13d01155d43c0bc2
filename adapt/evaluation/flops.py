"""Floating point operations of a forward pass, by torch's counter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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


@contextmanager
def _unfused() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
