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
        from adapt.backbones.hf import vision_tower
        from adapt.backbones.native import NativeVLM

        inner, config = model.model, model.config
        vision = vision_tower(inner.vision_tower, config.vision_config)
        layers, count = config.vision_feature_layer, len(vision.blocks)  # layer 0 is the embeddings
        last = [each if each >= 0 else count + 1 + each for each in ([layers] if isinstance(layers, int) else layers)]
        vision = replace(vision, blocks=vision.blocks[: max(last)])
        projector = inner.multi_modal_projector
        connectors = {projector: {"linear_1": projector.linear_1, "linear_2": projector.linear_2}}
        # LLaVA-OneVision cuts a single image into tiles, and images of a conversation with several into none
        independent = config.model_type != "llava_onevision"
        return NativeVLM(
            model, processor, vision, connectors, inner.language_model.layers, name, independent=independent
        )
