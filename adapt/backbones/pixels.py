"""Pixels for a second image model, from those that the backbone's preprocessing gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.preprocess import Preprocess


class Repixelled:
    """A conversion of pixels `(b, 3, h, w)` from one model's image size and normalisation to another's."""

    def __init__(self, given: Preprocess, wanted: Preprocess) -> None:
        self._size = wanted.size
        scale = [old / new for old, new in zip(given.std, wanted.std, strict=True)]
        shift = [(old - new) / by for old, new, by in zip(given.mean, wanted.mean, wanted.std, strict=True)]
        self._scale, self._shift = (torch.tensor(values)[:, None, None] for values in (scale, shift))

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != self._size:
            pixels = F.interpolate(pixels, (self._size, self._size), mode="bicubic", antialias=True)
        return pixels * self._scale.to(pixels) + self._shift.to(pixels)
