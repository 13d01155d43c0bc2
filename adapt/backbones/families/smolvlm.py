"""The family of SmolVLM and Idefics3: a SigLIP, a linear connector after a pixel shuffle, and a Llama-like decoder."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError, missing

if TYPE_CHECKING:
    from adapt.backbones.native import NativeVLM


class SmolVLM(Family):
    name = "smolvlm"
    model_types: ClassVar = {
        "smolvlm": ("SmolVLMForConditionalGeneration",),
        "idefics3": ("Idefics3ForConditionalGeneration",),
    }
    whole_processor = True

    def check_libraries(self, model_type: str) -> None:
        if model_type == "smolvlm" and find_spec("num2words") is None:
            raise missing("SmolVLM's processor", "num2words", "vlm")

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones.hf import encoder_blocks
        from adapt.backbones.native import NativeVLM
        from adapt.backbones.tower import Form, Tower

        inner, eyes, form = model.model, model.config.vision_config, Form(causal=False, pooling="none")
        blocks = encoder_blocks(inner.vision_model)
        vision = Tower("vision", eyes.hidden_size, eyes.num_attention_heads, form, blocks)
        connectors = {inner.connector: {"proj": inner.connector.modality_projection.proj}}
        return NativeVLM(model, processor, vision, connectors, inner.text_model.layers, name, _bound)


def _bound(pixels: Any, most: int) -> dict[str, object]:
    """Return the settings for square images of as many tiles a side as have at most `most` pixels."""
    tile = pixels.max_image_size["longest_edge"]
    side = int(most**0.5) // tile
    if side < 1:
        raise AdaptError(f"max_pixels is {most:,}; expected at least {tile**2:,}, the pixels of one tile")
    return {"size": {"longest_edge": side * tile}, "do_image_splitting": side > 1}
