"""The family of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size in packed patches, merged two by two.

Qwen3-VL also hands outputs of early vision blocks to the decoder (deepstack); their mergers belong to its connector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from torch import nn

    from adapt.backbones.native import NativeVLM
    from adapt.backbones.tower import Block


class QwenVL(Family):
    name = "qwen_vl"
    model_types: ClassVar = {
        "qwen2_vl": ("Qwen2VLForConditionalGeneration",),
        "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration",),
        "qwen3_vl": ("Qwen3VLForConditionalGeneration",),
    }
    whole_processor = True

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones.native import NativeVLM
        from adapt.backbones.tower import Form, Tower

        inner, form = model.model, Form(causal=False, pooling="none")
        eyes = inner.visual
        blocks = tuple(map(_block, eyes.blocks))
        vision = Tower("vision", blocks[0].projections["q"].shape[1], eyes.blocks[0].attn.num_heads, form, blocks)
        return NativeVLM(model, processor, vision, _mergers(eyes), inner.language_model.layers, name, _bound)


def _bound(pixels: Any, most: int) -> dict[str, object]:
    """Return the setting for images of at most `most` pixels, an area, whatever their shape."""
    least = (pixels.patch_size * pixels.merge_size) ** 2
    if most < least:
        raise AdaptError(f"max_pixels is {most:,}; expected at least {least:,}, the pixels of one token")
    return {"size": {"shortest_edge": min(pixels.size["shortest_edge"], most), "longest_edge": most}}


def _block(layer: Any) -> Block:
    from adapt.backbones.decoder import mlp_projections, submodule_of
    from adapt.backbones.tower import Block, Projection, Site, fused_qkv

    attn, mlp = layer.attn, layer.mlp
    attention = fused_qkv(attn.qkv, attn.qkv.in_features) | {"out": Projection(attn.proj)}
    return Block(
        module=layer,
        attn=attn,
        norm1=layer.norm1,
        norm2=layer.norm2,
        act=submodule_of(mlp, "act_fn", "act"),
        projections=attention | mlp_projections(mlp),
        sites={"attn": Site(layer.norm1, attn), "mlp": Site(layer.norm2, mlp)},
        mlp=mlp,
        plain_attention=False,  # rotary positions, and windows
    )


def _mergers(eyes: Any) -> dict[nn.Module, dict[str, nn.Module]]:
    """Return the merger, and the mergers of early blocks where there are some, each with its linear maps by name."""
    if hasattr(eyes.merger, "mlp"):
        return {eyes.merger: {"fc1": eyes.merger.mlp[0], "fc2": eyes.merger.mlp[2]}}
    mergers = [eyes.merger, *eyes.deepstack_merger_list]
    return {merger: {"fc1": merger.linear_fc1, "fc2": merger.linear_fc2} for merger in mergers}
