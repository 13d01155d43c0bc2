"""Backbones of transformers' vision models (DINOv2, DINOv3, ViT, ConvNeXt, RADIO, ...), and maps of their blocks.

What one image's feature is, as each model's authors read it: the normed class token (DINOv2, DINOv3, ViT, MSN), the
mean of all patches (I-JEPA, which has no class token), the pooling head (SigLIP, AIMv2), the pooled map (ConvNeXt), or
the class tokens in a row (RADIO). ViT's `pooler_output` is not used: it is random unless a checkpoint trained it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from adapt.backbones import hf
from adapt.backbones.hf import block_of, preprocess_of, within
from adapt.backbones.tower import Form, LastProjection, Norm, Pooling, Tower, VisionParts
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from adapt.backbones.preprocess import Preprocess
    from adapt.backbones.transformers_models import ImageProcessor

_POOLING: dict[str, Pooling] = {"ijepa": "mean", "siglip_vision_model": "map", "aimv2_vision_model": "map"}
_OF_MAPS = ("convnext", "convnextv2", "dinov3_convnext")
_POOLED = (*_OF_MAPS, "aimv2_vision_model", "clip_vision_model", "siglip_vision_model")  # by the library itself
_BLOCKS = ("encoder.layer", "encoder.layers", "model.layer", "layers")  # where a model keeps its blocks
_ROTARY = ("dinov3_vit",)
_OF_ONE_SIZE = ("clip_vision_model", "ijepa", "siglip_vision_model", "vit", "vit_msn")  # of their positions


def build(model: Any, image_processor: ImageProcessor, name: str | None = None) -> VisionEncoder:
    """Wrap a transformers vision model and its image processor as a backbone."""
    kind, preprocess = model.config.model_type, _preprocess(image_processor)
    if kind in _OF_ONE_SIZE and preprocess.size != model.config.image_size:
        raise AdaptError(
            f"the {type(image_processor).__name__} makes images of {preprocess.size} pixels, but this "
            f"{type(model).__name__} reads {model.config.image_size}: give the processor that belongs to the model"
        )
    if getattr(model.config, "vision_use_head", True) is False:
        raise AdaptError(f"this {type(model).__name__} has no pooling head: give one with vision_use_head")
    tower = _tower(model, kind)
    return VisionEncoder(
        model=model,
        towers={} if tower is None else {"vision": tower},
        preprocess=preprocess,
        encode_image=partial(_encode, model, kind),
        name=name,
        export=partial(hf.export_folder, [image_processor]),
    )


def _preprocess(image_processor: ImageProcessor) -> Preprocess:
    """Return how images are prepared, in the size of the processor: the weights may have another (DINOv2)."""
    crops = bool(getattr(image_processor, "do_center_crop", False))
    size = dict(image_processor.crop_size if crops else image_processor.size)
    side = size.get("height") or size.get("shortest_edge")
    if not side or size.get("width", side) != side:
        raise AdaptError(
            f"the {type(image_processor).__name__} makes images of the size {size}; expected a square, as in "
            "{'height': 224, 'width': 224}: give a processor with another size"
        )
    return preprocess_of(image_processor, int(side))


# functions of the model, not closures over it: a copy of the backbone must call its own


def _encode(model: Any, kind: str, images: Tensor) -> Tensor:
    """Return one feature for each image `(b, e)`."""
    output = model(pixel_values=images)
    read = "summary" if kind == "radio" else "pooler_output" if kind in _POOLED else "last_hidden_state"
    features: Tensor = getattr(output, "image_embeds" if hasattr(model, "visual_projection") else read)
    if features.ndim == 2:
        return features
    return features.mean(1) if _POOLING.get(kind) == "mean" else features[:, 0]


def _tower(model: Any, kind: str) -> Tower | None:
    """Return the vision tower of a transformers model; None for a network that is no transformer, such as ConvNeXt."""
    config = model.config
    if kind in ("siglip_vision_model", "clip_vision_model"):
        projection = LastProjection.of(model, "visual_projection")
        return hf.vision_tower(model if projection is None else model.vision_model, config, projection)
    layers = next((found for path in _BLOCKS if (found := within(model, path)) is not None), None)
    if layers is None or not hasattr(config, "num_attention_heads"):
        return None
    pooling = _POOLING.get(kind, "class")
    norm = next((found for name in ("layernorm", "norm", "rms_norm") if (found := within(model, name))), None)
    return Tower(
        name="vision",
        width=config.hidden_size,
        heads=config.num_attention_heads,
        form=Form(
            causal=False,
            pooling=pooling,
            registers=getattr(config, "num_register_tokens", 0),
            rotary=kind in _ROTARY,
        ),
        blocks=tuple(block_of(layer, kind not in _ROTARY) for layer in layers),
        # without a final norm (RADIO), its own forward reads the tokens
        vision=None if norm is None else VisionParts(model.embeddings, partial(_read, model, pooling), nn.Identity()),
        final_norm=norm,
    )


def _read(model: Any, pooling: Pooling, x: Tensor, norm: Norm) -> Tensor:
    if pooling == "class":
        return norm(x[:, 0])
    if pooling == "mean":
        return norm(x).mean(1)
    pooled: Tensor = model.head(norm(x))
    return pooled
