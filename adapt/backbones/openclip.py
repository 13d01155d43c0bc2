"""Backbones of open_clip's `CLIP` and `CustomTextCLIP`, with native or timm ViTs, and maps of their towers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import open_clip
from open_clip import CLIP, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, syntax_mask_tokenize
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from adapt.backbones import plain_clip
from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Preprocess, Transform, from_torchvision
from adapt.backbones.timm_images import timm_tower
from adapt.backbones.tokenizer import HFText, SimpleText, TextTokenizer, check_tokenizer
from adapt.backbones.tower import Form, Norm, Pooling, Tower
from adapt.common.errors import AdaptError

_TEXT_POOLING: dict[str, Pooling] = {"argmax": "end", "eos": "end", "first": "class", "last": "last", "none": "none"}
_VISION_POOLING: dict[str, Pooling] = {"tok": "class", "avg": "mean", "none": "none"}


def build(
    model: nn.Module,
    tokenizer: SimpleTokenizer | HFTokenizer,
    preprocess: Transform | None = None,
    name: str | None = None,
    config: Mapping[str, object] | None = None,
) -> DualEncoder:
    """Wrap an open_clip `model` and its tokenizer as a backbone; `preprocess` is the evaluation transform, if known.

    `config` is the `model_cfg` that the model was built from. Without `config`, edited copies cannot be exported.
    """
    if not isinstance(model, CLIP | CustomTextCLIP):
        raise AdaptError(
            f"from_open_clip got a {type(model).__name__}; expected open_clip's CLIP or CustomTextCLIP "
            "(for transformers models use Backbone.from_transformers)"
        )
    towers = {tower.name: tower for tower in (_text_tower(model), _vision_tower(model.visual)) if tower is not None}
    return DualEncoder(
        model=model,
        towers=towers,
        tokenizer=_tokenizer(tokenizer, model),
        preprocess=_preprocess(model, preprocess),
        encode_image=model.encode_image,
        encode_text=model.encode_text,
        name=name,
        eval_transform=preprocess,
        write=None if config is None else partial(_export, config, tokenizer),
    )


def _export(
    config: Mapping[str, object], tokenizer: SimpleTokenizer | HFTokenizer, folder: Path, model: nn.Module
) -> None:
    """Save a model to a folder in open_clip's `local-dir:` format, whose config says if the model uses QuickGELU."""
    activations = {type(module).__name__ for module in model.modules()}
    cfg = {
        "model_cfg": {**config, "quick_gelu": "QuickGELU" in activations},
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(folder)


def _tokenizer(tokenizer: SimpleTokenizer | HFTokenizer, model: CLIP | CustomTextCLIP) -> TextTokenizer:
    length = int(model.context_length)
    if isinstance(getattr(model, "text", None), HFTextEncoder):  # its own length counts padding positions
        length = min(length, getattr(tokenizer, "context_length", None) or length)
    if isinstance(tokenizer, SimpleTokenizer):
        if tokenizer.reduction_fn is syntax_mask_tokenize:
            raise AdaptError("the tokenizer drops words by syntax: use a tokenizer without reduction_mask='syntax'")
        ours: TextTokenizer = SimpleText(tokenizer, length)
    elif isinstance(tokenizer, HFTokenizer):
        options = {"strip_sep": tokenizer.strip_sep_token, "class_token_last": tokenizer.tokenizer_mode == "clips"}
        ours = HFText(tokenizer.tokenizer, length, tokenizer.clean_fn, **options)
    else:
        given = "None" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise AdaptError(f"the tokenizer is {given}; expected the result of open_clip.get_tokenizer(ARCHITECTURE)")
    check_tokenizer(ours, partial(tokenizer, context_length=length), type(tokenizer).__name__)
    return ours


def _preprocess(model: CLIP | CustomTextCLIP, preprocess: Transform | None) -> Preprocess:
    if preprocess is not None:
        return from_torchvision(preprocess, model.visual.image_size)
    config = open_clip.get_model_preprocess_cfg(model)
    size = config.get("size", model.visual.image_size)
    return Preprocess(
        size=size if isinstance(size, int) else size[0],
        mean=tuple(config.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(config.get("std", open_clip.OPENAI_DATASET_STD)),
        interpolation=config.get("interpolation", "bicubic"),
        resize="squash" if config.get("resize_mode") == "squash" else "shortest",
    )


def _is_native(transformer: nn.Module) -> bool:
    """Return whether a transformer and all its blocks are of open_clip's plain classes."""
    if type(transformer) is not Transformer:
        return False
    return all(type(block) is ResidualAttentionBlock for block in transformer.get_submodule("resblocks").children())


def _text_tower(model: CLIP | CustomTextCLIP) -> Tower | None:
    """Return the text tower of an open_clip model; None if its text encoder is not open_clip's own transformer."""
    owner = model.text if isinstance(model, CustomTextCLIP) else model
    if owner is not model and type(owner) is not TextTransformer:
        return None
    if not _is_native(owner.transformer):
        return None
    pool_type = getattr(owner, "text_pool_type", None) or owner.pool_type
    appended_class_token = getattr(owner, "cls_emb", None) is not None
    form = Form(
        causal=owner.attn_mask is not None,
        pooling="last" if appended_class_token else _TEXT_POOLING[pool_type],
        plain_mask=not (appended_class_token or getattr(owner, "use_pad_mask", False)),
    )
    return plain_clip.text_tower(owner, form)


def _vision_tower(visual: nn.Module) -> Tower | None:
    """Return the vision tower of an open_clip model with a native or timm ViT; None for ResNets and other networks."""
    if isinstance(visual, VisionTransformer):
        if not _is_native(visual.transformer):
            return None
        pooling: Pooling = "map" if visual.attn_pool is not None else _VISION_POOLING[visual.pool_type]
        return plain_clip.vision_tower(visual, pooling, partial(_read, visual))
    trunk = getattr(visual, "trunk", None)
    return None if trunk is None else timm_tower(trunk, visual.get_submodule("head"))


def _read(visual: VisionTransformer, x: Tensor, norm: Norm) -> Tensor:
    if visual.final_ln_after_pool:
        return norm(visual._global_pool(x)[0])
    pooled: Tensor = visual._global_pool(norm(x))[0]
    return pooled
