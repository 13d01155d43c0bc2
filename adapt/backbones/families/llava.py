"""The family of LLaVA models with their own connectors: LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision.

The vision tower ends at the block whose output the connector reads: later blocks are computed and never used, and
training them would have no effect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    from adapt.backbones.native import NativeVLM


class Llava(Family):
    name = "llava"
    model_types: ClassVar = {
        "llava": ("LlavaForConditionalGeneration",),
        "llava_next": ("LlavaNextForConditionalGeneration",),
        "llava_onevision": ("LlavaOnevisionForConditionalGeneration",),
    }
    whole_processor = True

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones.decoder import tower_of
        from adapt.backbones.hf import vision_tower
        from adapt.backbones.native import NativeVLM, connector_tower

        inner, config = model.model, model.config
        text, projector = config.get_text_config(), inner.multi_modal_projector
        vision = vision_tower(inner.vision_tower, config.vision_config)
        linears = {"linear_1": projector.linear_1, "linear_2": projector.linear_2}
        layers, count = config.vision_feature_layer, len(vision.blocks)  # layer 0 is the embeddings
        last = [each if each >= 0 else count + 1 + each for each in ([layers] if isinstance(layers, int) else layers)]
        towers = {
            "vision": replace(vision, blocks=vision.blocks[: max(last)]),
            "connector": connector_tower(text.hidden_size, {projector: linears}),
            "decoder": tower_of(inner.language_model.layers, text),
        }
        # LLaVA-OneVision cuts a single image into tiles, and images of a conversation with several into none
        independent = config.model_type != "llava_onevision"
        return NativeVLM(model, processor, towers, name, independent=independent)
