"""The backbone without an adaptation method, with which an adapted model is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapt.backbones.base import Backbone
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.methods.nearest_mean import NearestMean
from adapt.methods.zero_shot import ZeroShot
from adapt.models.wrap import Model, wrap


def unadapted(
    backbone: Backbone,
    class_names: Sequence[str] = (),
    template: str | tuple[str, ...] = "a photo of a {}.",
    **options: Any,
) -> Model:
    """Return a model of the frozen backbone, which classifies by `template`, or by the class means of training images.

    Class means, of a backbone that reads no text, are zero until `prepare` of the method gets training images.
    """
    if isinstance(backbone, VisionEncoder):
        return wrap(backbone, NearestMean(), class_names or ("object",), options.get("fast"))
    return wrap(backbone, ZeroShot(template), class_names, **options)
