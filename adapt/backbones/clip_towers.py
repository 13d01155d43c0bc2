"""Maps of the two transformers of a CLIP whose modules have open_clip's names: open_clip's own, and `plain_clip`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

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

Owner = Any  # a module whose attributes have open_clip's names


def text_tower(owner: Owner, form: Form) -> Tower:
    """Return the map of the text transformer in `owner`, a CLIP or its text encoder."""
    parts = TextParts(
        embedding=owner.token_embedding,
        positions=partial(_positions, owner),
        final_norm=owner.ln_final,
        project=LastProjection(owner, "text_projection"),
    )
    outside = {"final_norm": owner.ln_final, "projection": LastProjection.of(owner, "text_projection")}
    return _tower("text", form, owner, text=parts, **outside)


def vision_tower(visual: Owner, pooling: Pooling, read: Callable[[Tensor, Norm], Tensor]) -> Tower:
    """Return the map of a vision transformer, of which `read` pools the tokens `(b, l, d)` under the final norm."""
    parts = VisionParts(partial(_embed, visual), read, LastProjection(visual, "proj"))
    outside = {
        "pre_norm": visual.ln_pre,
        "final_norm": visual.ln_post,
        "projection": LastProjection.of(visual, "proj"),
    }
    return _tower("vision", Form(False, pooling), visual, vision=None if pooling == "map" else parts, **outside)


def _tower(name: str, form: Form, owner: Owner, **parts: Any) -> Tower:
    blocks = tuple(map(block_of, owner.transformer.resblocks))
    heads, width = blocks[0].attn.num_heads, blocks[0].projections["out"].shape[0]
    assert isinstance(heads, int)
    return Tower(name, width, heads, form, blocks, **parts)


def block_of(module: Owner) -> Block:
    """Return the map of a block with open_clip's names."""
    attn, mlp = module.attn, module.mlp
    projections = fused_qkv(attn, attn.embed_dim, "in_proj_weight", "in_proj_bias")
    projections |= {"out": Projection(attn.out_proj), "fc1": Projection(mlp.c_fc), "fc2": Projection(mlp.c_proj)}
    scales = (module.ls_1, module.ls_2)
    norms = (module.ln_1, module.ln_2)
    sites = dict(zip(("attn", "mlp"), map(Site, norms, scales)))
    form = {"batch_first": attn.batch_first, "quick_gelu": type(mlp.gelu).__name__ == "QuickGELU"}
    return Block(module, attn, *norms, mlp.gelu, projections, *scales, sites, mlp, **form)


# functions of their owner, not closures over it: a copy of the backbone must read its own


def _positions(owner: Owner) -> Tensor:
    positions: Tensor = owner.positional_embedding.detach()
    return positions


def _embed(visual: Owner, images: Tensor) -> Tensor:
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.detach().to(patches.dtype).expand(patches.shape[0], 1, -1)
    return torch.cat([first, patches], dim=1) + visual.positional_embedding.detach().to(patches.dtype)
