"""Maps transformers' CLIP and SigLIP models to towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPModel, SiglipModel

from adapt.backbones.base import Backbone
from adapt.backbones.preprocess import Preprocess
from adapt.backbones.tokenizer import HFText
from adapt.backbones.tower import Block, Form, Projection, TextParts, Tower
from adapt.errors import AdaptError

_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def build(model: Any, processor: Any, name: str | None = None) -> Backbone:
    """The backbone of a transformers `CLIPModel` or `SiglipModel` and its processor."""
    if not isinstance(model, CLIPModel | SiglipModel):
        raise AdaptError(
            f"from_transformers got a {type(model).__name__}; expected CLIPModel or SiglipModel "
            "(for open_clip models use Backbone.from_open_clip)"
        )
    text_config: Any = model.config.text_config
    vision_config: Any = model.config.vision_config
    siglip = isinstance(model, SiglipModel)
    text = Tower(
        name="text",
        width=text_config.hidden_size,
        heads=text_config.num_attention_heads,
        form=Form(causal=not siglip, pooling="last" if siglip else "end"),
        blocks=_blocks(model.text_model),
        text=_text_parts(model, siglip),
    )
    vision = Tower(
        name="vision",
        width=vision_config.hidden_size,
        heads=vision_config.num_attention_heads,
        form=Form(causal=False, pooling="map" if siglip else "class"),
        blocks=_blocks(model.vision_model),
        pre_norm=None if siglip else model.vision_model.pre_layrnorm,
    )
    return Backbone(
        model=model,
        towers={"text": text, "vision": vision},
        tokenizer=HFText(processor.tokenizer, text_config.max_position_embeddings),
        preprocess=_preprocess(processor.image_processor, vision_config.image_size),
        encode_image=lambda images: _pooled(model.get_image_features(pixel_values=images)),
        encode_text=lambda ids: _pooled(model.get_text_features(input_ids=ids)),
        name=name,
        export=lambda folder, changed: _export(folder, changed, processor),
    )


def _export(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns a model output from `get_*_features`, earlier releases the tensor itself."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _blocks(tower: Any) -> tuple[Block, ...]:
    return tuple(_block(layer) for layer in tower.encoder.layers)


def _block(layer: Any) -> Block:
    attn, mlp = layer.self_attn, layer.mlp
    projections = {"q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj, "out": attn.out_proj}
    projections |= {"fc1": mlp.fc1, "fc2": mlp.fc2}
    return Block(
        module=layer,
        attn=attn,
        norm1=layer.layer_norm1,
        norm2=layer.layer_norm2,
        act=mlp.activation_fn,
        projections={letter: Projection(module) for letter, module in projections.items()},
        added={"attn": attn, "mlp": mlp},
    )


def _text_parts(model: Any, siglip: bool) -> TextParts:
    text = model.text_model
    return TextParts(
        embedding=text.embeddings.token_embedding,
        positions=lambda: text.embeddings.position_embedding.weight.detach(),
        final_norm=text.final_layer_norm,
        project=text.head if siglip else model.text_projection,
    )


def _preprocess(image_processor: Any, image_size: int) -> Preprocess:
    crops = getattr(image_processor, "do_center_crop", None)
    return Preprocess(
        size=image_size,
        mean=tuple(image_processor.image_mean),
        std=tuple(image_processor.image_std),
        interpolation=_RESAMPLE[int(image_processor.resample)],
        resize="shortest" if crops else "squash",
    )
