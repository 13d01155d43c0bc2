"""The family of CLIP and SigLIP models of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    from adapt.backbones.base import Backbone


class TransformersCLIP(Family):
    name = "transformers_clip"
    model_types: ClassVar = {"clip": ("CLIPModel",), "siglip": ("SiglipModel",)}

    def build(self, model: Any, processor: Any, name: str | None) -> Backbone:
        from adapt.backbones import hf

        return hf.build(model, processor, name)
