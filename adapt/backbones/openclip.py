"""Backbones of open_clip's `CLIP` and `CustomTextCLIP`, with native or timm ViTs, and maps of their towers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, syntax_mask_tokenize
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from safetensors.torch import save_file
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Preprocess, Transform, from_torchvision
from adapt.backbones.tokenizer import HFText, SimpleText, TextTokenizer, check_tokenizer
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
    fused_qkv,
)
from adapt.errors import AdaptError

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
        export=None if config is None else partial(_export, config, tokenizer),
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


def _block(module: ResidualAttentionBlock) -> Block:
    attn, mlp = module.attn, module.mlp
    projections = fused_qkv(attn, attn.embed_dim, "in_proj_weight", "in_proj_bias")
    projections |= {"out": Projection(attn.out_proj), "fc1": Projection(mlp.c_fc), "fc2": Projection(mlp.c_proj)}
    scales = (module.ls_1, module.ls_2)
    norms = (module.ln_1, module.ln_2)
    sites = dict(zip(("attn", "mlp"), map(Site, norms, scales)))
    form = {"batch_first": attn.batch_first, "quick_gelu": type(mlp.gelu) is QuickGELU}
    return Block(module, attn, *norms, mlp.gelu, projections, *scales, sites, mlp, **form)


def _native_blocks(transformer: Transformer) -> tuple[Block, ...] | None:
    """Return the blocks of open_clip's own `Transformer`, or None if the transformer or a block is of another class."""
    if type(transformer) is not Transformer:
        return None
    if any(type(block) is not ResidualAttentionBlock for block in transformer.resblocks):
        return None
    return tuple(_block(block) for block in transformer.resblocks)


def _text_tower(model: CLIP | CustomTextCLIP) -> Tower | None:
    """Return the text tower of an open_clip model; None if its text encoder is not open_clip's own transformer."""
    owner = model.text if isinstance(model, CustomTextCLIP) else model
    if owner is not model and type(owner) is not TextTransformer:
        return None
    blocks = _native_blocks(owner.transformer)
    if blocks is None:
        return None
    pool_type = getattr(owner, "text_pool_type", None) or owner.pool_type
    appended_class_token = getattr(owner, "cls_emb", None) is not None
    form = Form(
        causal=owner.attn_mask is not None,
        pooling="last" if appended_class_token else _TEXT_POOLING[pool_type],
        plain_mask=not (appended_class_token or getattr(owner, "use_pad_mask", False)),
    )
    parts = TextParts(
        embedding=owner.token_embedding,
        positions=partial(_positions, owner),
        final_norm=owner.ln_final,
        project=partial(_project, owner, "text_projection"),
    )
    return _tower(
        "text", form, blocks, text=parts, final_norm=owner.ln_final, projection=_last(owner, "text_projection")
    )


def _tower(name: str, form: Form, blocks: tuple[Block, ...], **parts: Any) -> Tower:
    heads, width = blocks[0].attn.num_heads, blocks[0].projections["out"].shape[0]
    assert isinstance(heads, int)
    return Tower(name, width, heads, form, blocks, **parts)


def _last(owner: nn.Module, name: str) -> LastProjection | None:
    """Return the final projection, the attribute `name` of `owner`; None if it is not a parameter or linear layer."""
    known = isinstance(getattr(owner, name, None), nn.Parameter | nn.Linear)
    return LastProjection(owner, name) if known else None


# functions of their owner, not closures over it: a copy of the backbone must read its own


def _positions(owner: CLIP | TextTransformer) -> Tensor:
    positions: Tensor = owner.positional_embedding.detach()
    return positions


def _project(owner: nn.Module, name: str, pooled: Tensor) -> Tensor:
    projection: nn.Module | Tensor | None = getattr(owner, name)
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection.detach()


def _vision_tower(visual: nn.Module) -> Tower | None:
    """Return the vision tower of an open_clip model with a native or timm ViT; None for ResNets and other networks."""
    if isinstance(visual, VisionTransformer):
        blocks = _native_blocks(visual.transformer)
        if blocks is None:
            return None
        pooling: Pooling = "map" if visual.attn_pool is not None else _VISION_POOLING[visual.pool_type]
        outside = {"pre_norm": visual.ln_pre, "final_norm": visual.ln_post, "projection": _last(visual, "proj")}
        parts = VisionParts(partial(_embed, visual), partial(_read, visual), partial(_project, visual, "proj"))
        return _tower("vision", Form(False, pooling), blocks, vision=None if pooling == "map" else parts, **outside)
    trunk = getattr(visual, "trunk", None)
    return None if trunk is None else _timm_tower(trunk, visual.get_submodule("head"))


def _embed(visual: VisionTransformer, images: Tensor) -> Tensor:
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.detach().to(patches.dtype).expand(patches.shape[0], 1, -1)
    return torch.cat([first, patches], dim=1) + visual.positional_embedding.detach().to(patches.dtype)


def _read(visual: VisionTransformer, x: Tensor, norm: Norm) -> Tensor:
    if visual.final_ln_after_pool:
        return norm(visual._global_pool(x)[0])
    pooled: Tensor = visual._global_pool(norm(x))[0]
    return pooled


def _timm_tower(trunk: nn.Module, head: nn.Module) -> Tower | None:
    if not isinstance(trunk, TimmViT) or any(type(block) is not TimmBlock for block in trunk.blocks):
        return None
    if any(
        type(block.attn) is not TimmAttention or not _timm_mlp(block.get_submodule("mlp")) for block in trunk.blocks
    ):
        return None
    blocks = tuple(_timm_block(block) for block in trunk.blocks)
    pooling: Pooling = {"token": "class", "avg": "mean", "map": "map"}.get(trunk.global_pool, "none")  # type: ignore[assignment]
    final = trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm  # after the pooling, or before it
    outside = {"pre_norm": trunk.norm_pre, "final_norm": final, "projection": _last(head, "proj")}
    parts = VisionParts(partial(_timm_embed, trunk), partial(_timm_read, trunk), partial(_timm_project, trunk, head))
    return _tower("vision", Form(False, pooling), blocks, vision=parts, **outside)


def _timm_embed(trunk: TimmViT, images: Tensor) -> Tensor:
    embedded: Tensor = trunk._pos_embed(trunk.patch_embed(images))
    return embedded


def _timm_project(trunk: TimmViT, head: nn.Module, pooled: Tensor) -> Tensor:
    features: Tensor = head(trunk.head(pooled))  # trunk.head projects if open_clip's config has no projection
    return features


def _timm_read(trunk: TimmViT, x: Tensor, norm: Norm) -> Tensor:
    before, after = (trunk.norm, norm) if isinstance(trunk.norm, nn.Identity) else (norm, trunk.fc_norm)
    pooled: Tensor = after(trunk.pool(before(x)))
    return pooled


# linears of timm's MLPs: plain ones, and those with a gate (ViTamin)
_MLPS: tuple[dict[str, str], ...] = ({"fc1": "fc1", "fc2": "fc2"}, {"w0": "gate", "w1": "up", "w2": "down"})


def _timm_mlp(mlp: nn.Module) -> dict[str, Projection]:
    """Return a dict of the linear layers in a timm MLP, with short names such as fc1; empty for an unknown MLP type."""
    names = next((known for known in _MLPS if all(hasattr(mlp, name) for name in known)), {})
    return {letter: Projection(getattr(mlp, name)) for name, letter in names.items()}


def _timm_block(module: nn.Module) -> Block:
    assert isinstance(module, TimmBlock)
    attn, mlp = module.attn, module.get_submodule("mlp")
    assert isinstance(attn, TimmAttention)
    projections = fused_qkv(attn.qkv, attn.num_heads * attn.head_dim)
    projections |= {"out": Projection(attn.proj)} | _timm_mlp(mlp)
    between = (attn.q_norm, attn.k_norm, getattr(attn, "norm", None), getattr(attn, "gate", None))
    return Block(
        module,
        attn,
        module.norm1,
        module.norm2,
        mlp.get_submodule("act"),
        projections,
        module.ls1,
        module.ls2,
        sites={"attn": Site(module.norm1, module.ls1), "mlp": Site(module.norm2, module.ls2)},
        mlp=mlp,
        attn_returns_weights=False,
        plain_attention=all(part is None or isinstance(part, nn.Identity) for part in between),
    )
