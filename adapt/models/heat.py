"""Maps as pictures: the image as the backbone reads it, and over it, in warm colours, what looks abnormal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from adapt.backbones.preprocess import Preprocess

_WARM, _HOT = "#ff7a1a", "#d0002f"
_MOST = 0.8  # of the image that a colour hides


def extremes_of(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Between which values maps have colours, on one scale: half of all pixels are below, and none is above."""
    if not maps:
        return 0.0, 1.0
    every = torch.cat([each.flatten() for each in maps])
    return float(every.median()), float(every.max())


def heat(picture: Image.Image, anomalies: Tensor, extremes: tuple[float, float], preprocess: Preprocess) -> Image.Image:
    """An image under its map `(h, w)`: clear up to the lower of `extremes`, and darkest red from the upper one on."""
    low, high = extremes
    levels = ((anomalies - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    grey = Image.fromarray(levels.round().byte().numpy())
    colours = ImageOps.colorize(grey, _WARM, _HOT)
    read = preprocess.placing()(picture).resize(colours.size)
    return Image.composite(colours, read, grey.point(lambda level: round(_MOST * level)))
