"""Backbones of transformers' CLIP and SigLIP models, and of its vision models: DINOv2, DINOv3, ViT, ConvNeXt and RADIO.

What one image's feature is, as each vision model's authors read it: the normed class token (DINOv2, DINOv3, ViT, MSN),
the mean of all patches (I-JEPA, which has no class token), the pooling head (SigLIP, AIMv2), the pooled map (ConvNeXt),
or the class tokens in a row (RADIO). ViT's `pooler_output` is not used: it is random unless a checkpoint trained it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipTextEmbeddings

from adapt.backbones.base import DualEncoder
from adapt.backbones.decoder import mlp_projections, submodule_of
from adapt.backbones.preprocess import Preprocess
from adapt.backbones.tokenizer import HFText, check_tokenizer
from adapt.backbones.tower import (
    Block,
    Form,
    LastProjection,
    Norm,
    Pooling,
    Projection,
    Site,
    TextParts,
    Tower,
    VisionParts,
)
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adapt.backbones.base import Backbone

_VisionModel = transformers.CLIPVisionModel | transformers.SiglipVisionModel
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
# types of vision models
_POOLING: dict[str, Pooling] = {"ijepa": "mean", "siglip_vision_model": "map", "aimv2_vision_model": "map"}
_OF_MAPS = ("convnext", "convnextv2", "dinov3_convnext")
_POOLED = (*_OF_MAPS, "aimv2_vision_model", "clip_vision_model", "siglip_vision_model")  # by the library itself
_BLOCKS = ("encoder.layer", "encoder.layers", "model.layer", "layers")  # where a model keeps its blocks
_ROTARY = ("dinov3_vit",)
_OF_ONE_SIZE = ("clip_vision_model", "ijepa", "siglip_vision_model", "vit", "vit_msn")  # of their positions


def build(model: nn.Module, processor: Any, name: str | None = None) -> DualEncoder:
    """Wrap a transformers `CLIPModel` or `SiglipModel` and its processor as a backbone."""
    if not isinstance(model, transformers.CLIPModel | transformers.SiglipModel):
        raise AdaptError(f"from_transformers got a {type(model).__name__}; expected CLIPModel or SiglipModel")
    text_config = cast("transformers.PreTrainedConfig", model.config.text_config)
    vision_config = cast("transformers.PreTrainedConfig", model.config.vision_config)
    siglip = isinstance(model, transformers.SiglipModel)
    last = LastProjection(model.text_model, "head") if siglip else LastProjection(model, "text_projection")
    text = Tower(
        name="text",
        width=text_config.hidden_size,
        heads=text_config.num_attention_heads,
        form=Form(causal=not siglip, pooling="last" if siglip else "end"),
        blocks=encoder_blocks(model.text_model),
        text=TextParts(
            embedding=model.text_model.embeddings.token_embedding,
            positions=partial(_positions, model.text_model.embeddings),
            final_norm=model.text_model.final_layer_norm,
            project=getattr(last.owner, last.name),
        ),
        final_norm=model.text_model.final_layer_norm,
        projection=last,
    )
    projection = None if siglip else LastProjection(model, "visual_projection")
    vision = vision_tower(model.vision_model, vision_config, projection)
    return DualEncoder(
        model=model,
        towers={"text": text, "vision": vision},
        tokenizer=_tokenizer(processor.tokenizer, text_config.max_position_embeddings),
        preprocess=preprocess_of(processor.image_processor, vision_config.image_size),
        encode_image=partial(_pooled, model.get_image_features),
        encode_text=partial(_pooled, model.get_text_features),
        name=name,
        write=partial(export_folder, [processor.image_processor, processor.tokenizer]),
    )


def _tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, length: int) -> HFText:
    def padded(texts: list[str]) -> Tensor:
        rows = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return cast("Tensor", rows["input_ids"])

    ours = HFText(tokenizer, length)
    check_tokenizer(ours, padded, type(tokenizer).__name__)
    return ours


def vision_tower(
    model: _VisionModel,
    config: transformers.PreTrainedConfig,
    projection: LastProjection | None = None,
) -> Tower:
    """Return the vision tower of a CLIP or SigLIP vision model, which may belong to a larger model such as LLaVA."""
    pre_norm = getattr(model, "pre_layrnorm", None)  # SigLIP has neither it nor a class token
    project = nn.Identity() if projection is None else getattr(projection.owner, projection.name)
    pooling: Pooling = "map" if pre_norm is None else "class"
    return Tower(
        name="vision",
        width=config.hidden_size,
        heads=config.num_attention_heads,
        form=Form(causal=False, pooling=pooling),
        blocks=encoder_blocks(model),
        vision=VisionParts(model.embeddings, partial(_read, model, pooling), project),
        pre_norm=pre_norm,
        final_norm=model.post_layernorm,
        projection=projection,
    )


def export_folder(processors: Sequence[Any], folder: Path, model: transformers.PreTrainedModel) -> None:
    """Save a model, its image processor, and its tokenizer if it has one, to `folder` in transformers' format."""
    for part in (model, *processors):
        part.save_pretrained(folder)


# functions of the model, not closures over it: a copy of the backbone must call its own


def _pooled(compute: Callable[[Tensor], Any], inputs: Tensor) -> Tensor:
    features: Tensor = compute(inputs).pooler_output
    return features


def _positions(embeddings: CLIPTextEmbeddings | SiglipTextEmbeddings) -> Tensor:
    return embeddings.position_embedding.weight.detach()


def encoder_blocks(tower: nn.Module) -> tuple[Block, ...]:
    """Return the blocks of a CLIP's or SigLIP's text or vision model, or of a vision model with SigLIP's names."""
    return tuple(map(block_of, tower.get_submodule("encoder.layers")))  # type: ignore[call-overload]  # a ModuleList


def block_of(layer: nn.Module, plain_attention: bool = True) -> Block:
    """Describe a pre-norm block, whose parts have a few spellings in transformers."""
    norm1 = submodule_of(layer, "norm1", "layernorm_before", "rms_norm1", "layer_norm1")
    norm2 = submodule_of(layer, "norm2", "layernorm_after", "rms_norm2", "layer_norm2")
    attn, mlp = submodule_of(layer, "attention", "self_attn"), submodule_of(layer, "mlp", "ffn")
    linears = mlp_projections(mlp)
    if not linears:  # under other names
        own = (Projection(part) for part in mlp.children() if isinstance(part, nn.Linear))
        linears = dict(zip(("fc1", "fc2"), own, strict=True))
    projections = {letter: Projection(attn.get_submodule(f"{letter}_proj")) for letter in "qkv"}
    projections |= {"out": Projection(submodule_of(attn, "o_proj", "out_proj", "projection_layer")), **linears}
    scales = [_within(layer, f"layer_scale{number}") for number in (1, 2)]
    added = [scale or part for scale, part in zip(scales, (attn, mlp), strict=True)]
    scale1, scale2 = (scale or nn.Identity() for scale in scales)
    sites = {"attn": Site(norm1, added[0]), "mlp": Site(norm2, added[1])}
    act = submodule_of(mlp, "activation_fn", "act_fn", "activation")
    quick = isinstance(act, QuickGELUActivation)
    return Block(
        layer, attn, norm1, norm2, act, projections, scale1, scale2, sites, mlp,
        plain_attention=plain_attention, quick_gelu=quick,
    )  # fmt: skip


def _within(module: nn.Module, path: str) -> Any:
    """Return the submodule at `path`, or None if there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


def preprocess_of(
    image_processor: Any, image_size: int, resize: Literal["shortest", "squash"] | None = None
) -> Preprocess:
    """Convert a transformers image processor to an equivalent `Preprocess`, for a model with square inputs.

    `resize`, if given, overrides the resizing mode of the processor. Raises AdaptError with the name of the setting if
    the processor has a setting that `Preprocess` cannot express.
    """
    _check_settings(image_processor, resize is not None)
    how, edge = (resize, None) if resize else _resizing(image_processor, image_size)
    interpolation = _RESAMPLE[int(image_processor.resample)]
    normalizes = image_processor.do_normalize
    return Preprocess(
        size=image_size,
        mean=tuple(image_processor.image_mean) if normalizes else (0.0,) * 3,
        std=tuple(image_processor.image_std) if normalizes else (1.0,) * 3,
        interpolation=interpolation,
        resize=how,
        edge=edge,
        floor_crop=True,
        on_tensors=_resizes_tensors(image_processor, interpolation),
    )


def _check_settings(image_processor: Any, resized_our_way: bool) -> None:
    setting, unscaled = partial(getattr, image_processor), not image_processor.do_normalize
    filters = ", ".join(f"{number} ({name})" for number, name in _RESAMPLE.items())
    for name, as_expected, expected in (
        ("do_resize", setting("do_resize", True), "True"),
        ("do_rescale", setting("do_rescale", True), "True"),
        ("rescale_factor", abs(setting("rescale_factor", 1 / 255) - 1 / 255) <= 1e-6, "1/255"),
        ("resample", image_processor.resample in _RESAMPLE, filters),
        ("do_pad", resized_our_way or not setting("do_pad", False), "False"),
        ("image_mean", unscaled or _of_colours(image_processor.image_mean, -math.inf), "three numbers"),
        ("image_std", unscaled or _of_colours(image_processor.image_std, 0), "three numbers, above 0"),
    ):
        if not as_expected:
            raise AdaptError(
                f"the {type(image_processor).__name__} has {name} = {setting(name)!r}; expected {expected}. Give a "
                "processor with the expected value; otherwise images would not look as they did in the model's training"
            )


def _of_colours(values: object, above: float) -> bool:
    """Return whether `values` contains three finite numbers greater than `above`, one for each colour channel."""
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) and above < value < math.inf for value in values)
    )


def _resizing(image_processor: Any, image_size: int) -> tuple[Literal["shortest", "squash"], int | None]:
    """Return how a processor makes images square (shortest or squash), and the resized edge (None for `image_size`)."""
    crops = bool(getattr(image_processor, "do_center_crop", False))
    size, crop = _sides(image_processor.size), _sides(image_processor.crop_size) if crops else {}
    square = {"height": image_size, "width": image_size}
    if size == square and crop in ({}, square):
        return "squash", None
    if crop == square and set(size) == {"shortest_edge"}:
        return "shortest", None if size["shortest_edge"] == image_size else size["shortest_edge"]
    raise AdaptError(
        f"the {type(image_processor).__name__} resizes images to {size}{f' and crops them to {crop}' * crops}, but the "
        f"model needs {image_size} x {image_size} pixels; expected size {square}, or a shortest_edge and a crop to "
        f"{square}. Give the processor that belongs to the model"
    )


def _resizes_tensors(image_processor: Any, interpolation: str) -> bool:
    """Return whether to resize images as torch tensors, like the given image processor, rather than with Pillow.

    Torchvision has a Lanczos filter since version 0.27, but no box or Hamming filter. Without a Lanczos filter, the
    processors of transformers warn and use bicubic instead, which changes pixels by up to 22 of 255. adapt resizes with
    Pillow if a filter is missing, as the warning advises, so that the filter is always the filter of the training.
    """
    from torchvision import __version__

    version = tuple(int(part) for part in __version__.split(".")[:2])
    has = interpolation in ("nearest", "bilinear", "bicubic") or (interpolation == "lanczos" and version >= (0, 27))
    return has and getattr(image_processor, "backend", "pil") == "torchvision"


def _sides(size: Mapping[str, int | None] | None) -> dict[str, int]:
    return {key: int(value) for key, value in dict(size or {}).items() if value}


def build_encoder(model: Any, image_processor: Any, name: str | None = None) -> VisionEncoder:
    """Wrap a transformers vision model and its image processor as a backbone."""
    kind, preprocess = model.config.model_type, _square_preprocess(image_processor)
    if kind in _OF_ONE_SIZE and preprocess.size != model.config.image_size:
        raise AdaptError(
            f"the {type(image_processor).__name__} makes images of {preprocess.size} pixels, but this "
            f"{type(model).__name__} reads {model.config.image_size}: give the processor that belongs to the model"
        )
    if getattr(model.config, "vision_use_head", True) is False:
        raise AdaptError(f"this {type(model).__name__} has no pooling head: give one with vision_use_head")
    if kind.startswith("dinov2"):
        model.embeddings.position_offset = 0.0  # for fingerprints, see `with_offset`
    tower = _encoder_tower(model, kind)
    return VisionEncoder(
        model=model,
        towers={} if tower is None else {"vision": tower},
        preprocess=preprocess,
        encode_image=partial(_encode, model, kind),
        name=name,
        write=partial(export_folder, [image_processor]),
    )


def _square_preprocess(image_processor: Any) -> Preprocess:
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


def with_offset(backbone: Backbone, name: str) -> Backbone:
    """Make transformers' DINOv2 resize its positions as its own code does for weights without registers, and return it.

    There, n patches of a side take the positions of n + 0.1 (dinov2 `b8931f7`, `interpolate_offset`). It is not saved
    in transformers' format, which does not know the offset. Raises AdaptError for another backbone.
    """
    embeddings: Any = getattr(backbone.model, "embeddings", None)
    if not hasattr(embeddings, "position_offset"):
        raise AdaptError(f"{backbone.describe()} is no DINOv2 of transformers; expected hf:NAME of one after offset:")
    embeddings.position_offset = 0.1
    embeddings.interpolate_pos_encoding = partial(_resized_positions, embeddings)
    return replace(backbone, name=name, write=None)


def _resized_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    positions = embeddings.position_embeddings
    side = math.isqrt(positions.shape[1] - 1)
    grid = [pixels // of_patch for pixels, of_patch in zip((height, width), embeddings.patch_embeddings.patch_size)]
    if grid == [side, side]:
        return positions
    square = positions[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scales = [(count + embeddings.position_offset) / side for count in grid]
    resized = F.interpolate(square, scale_factor=scales, mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat([positions[:, :1], resized.to(positions.dtype)], 1)


def _encoder_tower(model: Any, kind: str) -> Tower | None:
    """Return the vision tower of a transformers model; None for a network that is no transformer, such as ConvNeXt."""
    config = model.config
    if kind in ("siglip_vision_model", "clip_vision_model"):
        projection = LastProjection.of(model, "visual_projection")
        return vision_tower(model if projection is None else model.vision_model, config, projection)
    layers = next((found for path in _BLOCKS if (found := _within(model, path)) is not None), None)
    if layers is None or not hasattr(config, "num_attention_heads"):
        return None
    pooling = _POOLING.get(kind, "class")
    norm = next((found for name in ("layernorm", "norm", "rms_norm") if (found := _within(model, name))), None)
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
