"""Backbones of timm's image models, and maps of its vision transformers, which some CLIPs have as image half."""

from __future__ import annotations

from functools import partial

import timm
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from adapt.backbones.preprocess import Preprocess
from adapt.backbones.tower import (
    Block,
    Form,
    LastProjection,
    Norm,
    Pooling,
    Projection,
    Site,
    Tower,
    VisionParts,
    fused_qkv,
)
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.common.errors import AdaptError


def build(model: nn.Module, name: str | None = None) -> VisionEncoder:
    """Wrap a timm model as a backbone. Raises AdaptError if `model` is not timm's, or still has a classifier."""
    if not hasattr(model, "pretrained_cfg"):
        raise AdaptError(f"from_timm got a {type(model).__name__}; expected the result of timm.create_model")
    if getattr(model, "num_classes", 0):
        raise AdaptError(
            f"this {type(model).__name__} ends in a classifier of {model.num_classes} classes; expected features: "
            "create it with num_classes=0"
        )
    tower = timm_tower(model, nn.Identity())
    return VisionEncoder(
        model=model.eval(),
        towers={} if tower is None else {"vision": tower},
        preprocess=_preprocess(model),
        encode_image=model,
        name=name,
    )


def _preprocess(model: object) -> Preprocess:
    """Return how images are prepared, as timm's own evaluation does it, in the size that the model was made for."""
    config = timm.data.resolve_model_data_config(model)
    of_patches = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = of_patches or config["input_size"][1:]
    if height != width:
        raise AdaptError(f"this {type(model).__name__} reads images of {height} x {width} pixels; expected a square")
    squash = config["crop_mode"] == "squash"
    return Preprocess(
        size=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize="squash" if squash else "shortest",
        edge=None if squash or config["crop_pct"] == 1 else int(height / config["crop_pct"]),
    )


def timm_tower(trunk: nn.Module, head: nn.Module) -> Tower | None:
    """Return the tower of a timm ViT whose pooled tokens enter `head`; None for another network."""
    if not isinstance(trunk, TimmViT) or any(type(block) is not TimmBlock for block in trunk.blocks):
        return None
    if any(
        type(block.attn) is not TimmAttention or not _timm_mlp(block.get_submodule("mlp")) for block in trunk.blocks
    ):
        return None
    blocks = tuple(_timm_block(block) for block in trunk.blocks)
    pooling: Pooling = {"token": "class", "avg": "mean", "map": "map"}.get(trunk.global_pool, "none")  # type: ignore[assignment]
    final = trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm  # after the pooling, or before it
    parts = VisionParts(partial(_timm_embed, trunk), partial(_timm_read, trunk), partial(_timm_project, trunk, head))
    heads = blocks[0].attn.num_heads
    assert isinstance(heads, int)
    return Tower(
        name="vision",
        width=trunk.embed_dim,
        heads=heads,
        form=Form(False, pooling, registers=trunk.num_prefix_tokens - (pooling == "class")),
        blocks=blocks,
        vision=parts,
        pre_norm=trunk.norm_pre,
        final_norm=final,
        projection=LastProjection.of(head, "proj"),
    )


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
