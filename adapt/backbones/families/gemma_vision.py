"""The family of PaliGemma and Gemma 3: a SigLIP, one linear map, and a Gemma decoder that sees images both ways.

The map of Gemma 3 is a bare matrix, no linear layer that a method could edit: it has no connector tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    from adapt.backbones.native import NativeVLM
    from adapt.backbones.tower import Tower


class GemmaVision(Family):
    name = "gemma_vision"
    model_types: ClassVar = {
        "paligemma": ("PaliGemmaForConditionalGeneration",),
        "gemma3": ("Gemma3ForConditionalGeneration",),
    }
    whole_processor = True

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones.decoder import tower_of
        from adapt.backbones.hf import vision_tower
        from adapt.backbones.native import NativeVLM, connector_tower
        from adapt.backbones.paligemma import PaliGemma

        inner, config = model.model, model.config
        text, projector = config.get_text_config(), inner.multi_modal_projector
        towers: dict[str, Tower] = {"vision": vision_tower(inner.vision_tower, config.vision_config)}
        if config.model_type == "paligemma":
            towers["connector"] = connector_tower(text.hidden_size, {projector: {"linear": projector.linear}})
        towers["decoder"] = tower_of(inner.language_model.layers, text)
        kind = PaliGemma if config.model_type == "paligemma" else NativeVLM
        return kind(model, processor, towers, name)
