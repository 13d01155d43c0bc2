"""Which kind of backbone a transformers model is."""

from __future__ import annotations

from typing import Any

from adapt.backbones.base import Backbone
from adapt.errors import AdaptError

KINDS = ("clip", "siglip", "vilt", "bridgetower", "llava")  # by config.model_type


def build(model: Any, processor: Any, name: str | None = None) -> Backbone:
    """The backbone of a transformers model and its processor. Raises AdaptError for one of another kind."""
    from adapt.backbones import fusion, hf, llava

    kind = getattr(getattr(model, "config", None), "model_type", None)
    builders = {
        "clip": hf.build,
        "siglip": hf.build,
        "vilt": fusion.build_vilt,
        "bridgetower": fusion.build_bridgetower,
        "llava": llava.build,
    }
    if kind not in builders:
        raise AdaptError(
            f"from_transformers got a {type(model).__name__}; expected CLIPModel, SiglipModel, a ViLT, BridgeTower or "
            "LLaVA model (for open_clip models use Backbone.from_open_clip)"
        )
    return builders[kind](model, processor, name)
