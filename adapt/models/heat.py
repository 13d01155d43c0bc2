"""Pictures of anomaly maps: warm colours over the part of an image that the backbone reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from adapt.backbones.preprocess import Preprocess

_WARM, _HOT = "#ff7a1a", "#d0002f"
_MOST = 0.8  # the opacity of the strongest colour


def extremes_of(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Return the ends of the colour scale of anomaly maps: the median of all their pixels, and the largest pixel."""
    if not maps:
        return 0.0, 1.0
    pixels = torch.cat([each.flatten() for each in maps])
    return float(pixels.median()), float(pixels.max())


def heat(picture: Image.Image, anomalies: Tensor, extremes: tuple[float, float], preprocess: Preprocess) -> Image.Image:
    """Return an image coloured by its anomaly map `(h, w)`: clear up to the lower of `extremes`, red from the upper."""
    low, high = extremes
    levels = ((anomalies - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    grey = Image.fromarray(levels.round().byte().numpy())
    colours = ImageOps.colorize(grey, _WARM, _HOT)
    cropped = preprocess.placing()(picture).resize(colours.size)
    return Image.composite(colours, cropped, grey.point(lambda level: round(_MOST * level)))
