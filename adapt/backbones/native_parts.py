"""What native vision-language models call their parts, and how each bounds the pixels of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from adapt.backbones.decoder import mlp_projections, submodule_of
from adapt.backbones.hf import block_of, encoder_blocks, vision_tower
from adapt.backbones.native import NativeVLM
from adapt.backbones.paligemma import PaliGemma
from adapt.backbones.tower import Block, Form, Projection, Site, Tower, fused_qkv
from adapt.common.errors import AdaptError

_SEEING = Form(causal=False, pooling="none")


def build(model: Any, processor: Any, name: str | None) -> NativeVLM:
    """Wrap a native vision-language model of transformers and its processor as a backbone."""
    config = model.config
    parts = _PARTS[config.model_type](model.model, config)
    return (PaliGemma if config.model_type == "paligemma" else NativeVLM)(model, processor, name=name, **parts)


def _maps(connector: Any, *names: str) -> dict[nn.Module, dict[str, nn.Module]]:
    """Return a connector with its linear maps by name."""
    return {connector: {name: getattr(connector, name) for name in names}}


def _gemma(inner: Any, config: Any) -> dict[str, Any]:
    """PaliGemma and Gemma 3: a SigLIP, one linear map, and a Gemma decoder that sees images both ways.

    The map of Gemma 3 is a bare matrix, no linear layer that a method could edit: it has no connector tower.
    """
    return {
        "vision": vision_tower(inner.vision_tower, config.vision_config),
        "connectors": _maps(inner.multi_modal_projector, "linear") if config.model_type == "paligemma" else {},
        "layers": inner.language_model.layers,
    }


def _internvl(inner: Any, config: Any) -> dict[str, Any]:
    """InternVL 2.5 to 3.5 in transformers' format (`...-HF` on the hub).

    An InternViT or a vision tower of the same form sees up to `max_patches` tiles of an image, each of one size, and
    one small picture of the whole if there are several.
    """
    eyes = config.vision_config
    # with norms of queries and keys, and a scale on what each site adds
    blocks = tuple(block_of(layer, plain_attention=False) for layer in inner.vision_tower.encoder.layer)
    return {
        "vision": Tower("vision", eyes.hidden_size, eyes.num_attention_heads, _SEEING, blocks),
        "connectors": _maps(inner.multi_modal_projector, "linear_1", "linear_2"),
        "layers": inner.language_model.layers,
        "bound": _tiles,
        "stacked": True,
    }


def _tiles(pixels: Any, most: int) -> dict[str, object]:
    """Return the setting for images of as many tiles as have at most `most` pixels, the small picture included."""
    tile = pixels.size["height"] * pixels.size["width"]
    if most < tile:
        raise AdaptError(f"max_pixels is {most:,}; expected at least {tile:,}, the pixels of one tile")
    return {"max_patches": min(pixels.max_patches, max(1, most // tile - 1))}


def _llava(inner: Any, config: Any) -> dict[str, Any]:
    """LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision.

    The vision tower ends at the block whose output the connector reads: later blocks are computed and never used, and
    training them would have no effect.
    """
    vision = vision_tower(inner.vision_tower, config.vision_config)
    layers, count = config.vision_feature_layer, len(vision.blocks)  # layer 0 is the embeddings
    last = [each if each >= 0 else count + 1 + each for each in ([layers] if isinstance(layers, int) else layers)]
    return {
        "vision": replace(vision, blocks=vision.blocks[: max(last)]),
        "connectors": _maps(inner.multi_modal_projector, "linear_1", "linear_2"),
        "layers": inner.language_model.layers,
        # LLaVA-OneVision cuts a single image into tiles, and images of a conversation with several into none
        "independent": config.model_type != "llava_onevision",
    }


def _qwen(inner: Any, config: Any) -> dict[str, Any]:
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size in packed patches, merged two by two.

    Qwen3-VL also hands outputs of early vision blocks to the decoder (deepstack); their mergers belong to its
    connector.
    """
    eyes = inner.visual
    blocks = tuple(map(_qwen_block, eyes.blocks))
    if hasattr(eyes.merger, "mlp"):
        mergers = {eyes.merger: {"fc1": eyes.merger.mlp[0], "fc2": eyes.merger.mlp[2]}}
    else:
        every = [eyes.merger, *eyes.deepstack_merger_list]
        mergers = {merger: {"fc1": merger.linear_fc1, "fc2": merger.linear_fc2} for merger in every}
    return {
        "vision": Tower("vision", blocks[0].projections["q"].shape[1], eyes.blocks[0].attn.num_heads, _SEEING, blocks),
        "connectors": mergers,
        "layers": inner.language_model.layers,
        "bound": _area,
    }


def _qwen_block(layer: Any) -> Block:
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


def _area(pixels: Any, most: int) -> dict[str, object]:
    """Return the setting for images of at most `most` pixels, an area, whatever their shape."""
    least = (pixels.patch_size * pixels.merge_size) ** 2
    if most < least:
        raise AdaptError(f"max_pixels is {most:,}; expected at least {least:,}, the pixels of one token")
    return {"size": {"shortest_edge": min(pixels.size["shortest_edge"], most), "longest_edge": most}}


def _smolvlm(inner: Any, config: Any) -> dict[str, Any]:
    """SmolVLM and Idefics3: a SigLIP, a linear connector after a pixel shuffle, and a Llama-like decoder."""
    eyes, blocks = config.vision_config, encoder_blocks(inner.vision_model)
    return {
        "vision": Tower("vision", eyes.hidden_size, eyes.num_attention_heads, _SEEING, blocks),
        "connectors": {inner.connector: {"proj": inner.connector.modality_projection.proj}},
        "layers": inner.text_model.layers,
        "bound": _square,
    }


def _square(pixels: Any, most: int) -> dict[str, object]:
    """Return the settings for square images of as many tiles a side as have at most `most` pixels."""
    tile = pixels.max_image_size["longest_edge"]
    side = int(most**0.5) // tile
    if side < 1:
        raise AdaptError(f"max_pixels is {most:,}; expected at least {tile**2:,}, the pixels of one tile")
    return {"size": {"longest_edge": side * tile}, "do_image_splitting": side > 1}


# by the type of a model: its parts, as arguments of `NativeVLM`
_PARTS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "gemma3": _gemma, "idefics3": _smolvlm, "internvl": _internvl, "llava": _llava, "llava_next": _llava,
    "llava_onevision": _llava, "paligemma": _gemma, "qwen2_5_vl": _qwen, "qwen2_vl": _qwen, "qwen3_vl": _qwen,
    "smolvlm": _smolvlm,
}  # fmt: skip
