"""The family of PaliGemma and Gemma 3: a SigLIP, one linear map, and a Gemma decoder that sees images both ways.

The map of Gemma 3 is a bare matrix, no linear layer that a method could edit: it has no connector tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    from adapt.backbones.native import NativeVLM


class GemmaVision(Family):
    name = "gemma_vision"
    model_types: ClassVar = {
        "paligemma": ("PaliGemmaForConditionalGeneration",),
        "gemma3": ("Gemma3ForConditionalGeneration",),
    }
    whole_processor = True

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones.hf import vision_tower
        from adapt.backbones.native import NativeVLM
        from adapt.backbones.paligemma import PaliGemma

        inner, pali = model.model, model.config.model_type == "paligemma"
        projector, vision = inner.multi_modal_projector, vision_tower(inner.vision_tower, model.config.vision_config)
        connectors = {projector: {"linear": projector.linear}} if pali else {}
        kind = PaliGemma if pali else NativeVLM
        return kind(model, processor, vision, connectors, inner.language_model.layers, name)
