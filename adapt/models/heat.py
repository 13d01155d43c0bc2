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
    """Return the two ends of the colour scale for anomaly maps: the median and the maximum of all pixels."""
    if not maps:
        return 0.0, 1.0
    pixels = torch.cat([each.flatten() for each in maps])
    return float(pixels.median()), float(pixels.max())


def heat(picture: Image.Image, anomalies: Tensor, extremes: tuple[float, float], preprocess: Preprocess) -> Image.Image:
    """Return an image with its anomaly map `(h, w)` as an overlay, from transparent to red between the `extremes`."""
    low, high = extremes
    levels = ((anomalies - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    grey = Image.fromarray(levels.round().byte().numpy())
    colours = ImageOps.colorize(grey, _WARM, _HOT)
    cropped = preprocess.placing()(picture).resize(colours.size)
    return Image.composite(colours, cropped, grey.point(lambda level: round(_MOST * level)))
