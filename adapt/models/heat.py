"""Maps as pictures: the image as the backbone reads it, and over it, in warm colours, what looks abnormal."""

from __future__ import annotations

from PIL import Image, ImageOps
from torch import Tensor

from adapt.backbones.preprocess import Preprocess

_WARM, _HOT = "#ff7a1a", "#d0002f"
_MOST = 0.8  # of the image that a colour hides


def heat(picture: Image.Image, anomalies: Tensor, extremes: tuple[float, float], preprocess: Preprocess) -> Image.Image:
    """An image under its map `(h, w)`: clear up to the lower of `extremes`, and darkest red from the upper one on."""
    low, high = extremes
    levels = ((anomalies - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    grey = Image.fromarray(levels.round().byte().numpy())
    colours = ImageOps.colorize(grey, _WARM, _HOT)
    read = preprocess.placing()(picture).resize(colours.size)
    return Image.composite(colours, read, grey.point(lambda level: round(_MOST * level)))
