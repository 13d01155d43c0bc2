"""The family of InternVL models in transformers' format (InternVL 2.5 to 3.5, `...-HF` on the hub).

An InternViT or a vision tower of the same form sees up to `max_patches` tiles of an image, each of one size, and one
small picture of the whole if there are several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from adapt.backbones.native import NativeVLM


class InternVL(Family):
    name = "internvl"
    model_types: ClassVar = {"internvl": ("InternVLForConditionalGeneration",)}
    whole_processor = True

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones.hf import block_of
        from adapt.backbones.native import NativeVLM
        from adapt.backbones.tower import Form, Tower

        inner, eyes, form = model.model, model.config.vision_config, Form(causal=False, pooling="none")
        # with norms of queries and keys, and a scale on what each site adds
        blocks = tuple(block_of(layer, plain_attention=False) for layer in inner.vision_tower.encoder.layer)
        vision = Tower("vision", eyes.hidden_size, eyes.num_attention_heads, form, blocks)
        projector = inner.multi_modal_projector
        connectors = {projector: {"linear_1": projector.linear_1, "linear_2": projector.linear_2}}
        return NativeVLM(model, processor, vision, connectors, inner.language_model.layers, name, _bound, stacked=True)


def _bound(pixels: Any, most: int) -> dict[str, object]:
    """Return the setting for images of as many tiles as have at most `most` pixels, the small picture included."""
    tile = pixels.size["height"] * pixels.size["width"]
    if most < tile:
        raise AdaptError(f"max_pixels is {most:,}; expected at least {tile:,}, the pixels of one tile")
    return {"max_patches": min(pixels.max_patches, max(1, most // tile - 1))}
