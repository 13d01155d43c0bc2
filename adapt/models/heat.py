"""Maps as pictures: the image as the backbone reads it, with what looks abnormal in warm colours."""

from __future__ import annotations

from PIL import Image, ImageOps
from torch import Tensor

from adapt.backbones.preprocess import Preprocess

_COLD, _WARM, _HOT = "#20205a", "#d0304a", "#ffe066"
_SHARE = 0.55  # of the colours, the rest being the image


def heat(picture: Image.Image, anomalies: Tensor, extremes: tuple[float, float], preprocess: Preprocess) -> Image.Image:
    """An image under its map `(h, w)`, whose colours go from the lower of `extremes` to the upper one."""
    low, high = extremes
    levels = ((anomalies - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    grey = Image.fromarray(levels.round().byte().numpy())
    colours = ImageOps.colorize(grey, _COLD, _HOT, mid=_WARM)
    read = preprocess.placing()(picture).resize(colours.size)
    return Image.blend(read, colours, _SHARE)
