"""The backbone without an adaptation method, with which an adapted model is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapt.backbones.base import Backbone
from adapt.methods.zero_shot import ZeroShot
from adapt.models.base import Adapted, is_native
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.image_model import ImageModel
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
    if backbone.kind == "vision encoder":
        from adapt.methods.nearest_mean import NearestMean

        return wrap(backbone, NearestMean(), class_names or ("object",), options.get("fast"))
    return wrap(backbone, ZeroShot(template), class_names, **options)


def without_method(model: Adapted, template: str | tuple[str, ...]) -> Model:
    """Return a model of the backbone of `model` without its method, with its classes, and on its paths."""
    options: dict[str, object] = {"fast": model.fast} if isinstance(model, ImageModel) else {}
    if isinstance(model, AdaptedModel):
        options["text_memory"] = model.text_memory
    if is_native(model):
        options["fast"] = None if model.path == "fast" else False
    return unadapted(model.backbone, model.class_names, template, **options)
