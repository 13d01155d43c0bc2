"""Quantisation of the linear layers in a backbone's blocks to 4 or 8 bits by bitsandbytes, also on the CPU.

Adapters train in full precision on top (QLoRA). Embeddings, norms and heads are not quantised.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.split_attention import SplitAttention
from adapt.backbones.tower import Block, Projection, Site
from adapt.common.errors import AdaptError, missing, nearest

Quantization = Literal["nf4", "int8"]
KINDS: tuple[Quantization, ...] = ("nf4", "int8")
B = TypeVar("B", bound=Backbone)


def quantize(backbone: B, kind: str) -> B:
    """Quantise every linear layer in the blocks of all towers of `backbone`, in place, and return `backbone`.

    The fingerprint is computed before quantisation. Fused attention is first split into separate linear layers with
    copied weights, and the fused weight is freed. Raises AdaptError if `kind` is unknown, bitsandbytes is missing, or
    the backbone is already quantised.
    """
    check_can(kind)
    if backbone.quantization is not None:
        raise AdaptError(
            f"{backbone.describe()} is already quantised to {backbone.quantization}: load the backbone again to "
            "quantise the original weights"
        )
    towers = backbone.stacks
    if not towers:
        raise AdaptError(f"{backbone.describe()} has no blocks that could be quantised: leave quantize out")
    _ = backbone.fingerprint  # cached from now on
    backbone.model.requires_grad_(False)
    for name, tower in towers.items():
        towers[name] = replace(tower, blocks=tuple(_quantized(block, kind) for block in tower.blocks))
    backbone.quantization = kind
    return backbone


def check_can(kind: str) -> None:
    """Raise AdaptError if `kind` is not nf4 or int8, or if bitsandbytes is not installed."""
    if kind not in KINDS:
        raise AdaptError(f"quantize is {kind!r}; {nearest(kind, KINDS)}")
    if find_spec("bitsandbytes") is None:
        raise missing(f"A backbone in {kind}", "bitsandbytes", "quantize")


def _quantized(block: Block, kind: str) -> Block:
    """Quantise the linear layers of a block's module in place, and return a `Block` that refers to the new layers."""
    from adapt.backbones import quantized_linears

    make = quantized_linears.nf4 if kind == "nf4" else quantized_linears.int8
    block = _split(block)
    new: dict[nn.Module, nn.Module] = {}
    for owner in list(block.module.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear or isinstance(child, nn.modules.linear.NonDynamicallyQuantizableLinear):
                new[child] = make(child)
                setattr(owner, name, new[child])
    projections = {
        letter: replace(projection, module=new[projection.module]) for letter, projection in block.projections.items()
    }
    sites = {
        name: Site(new.get(site.read, site.read), new.get(site.added, site.added)) for name, site in block.sites.items()
    }
    return replace(block, projections=projections, sites=sites)


def _split(block: Block) -> Block:
    """Split an `nn.MultiheadAttention` in `block` into linear layers q, k, v and out, and return the new block."""
    if not isinstance(block.attn, nn.MultiheadAttention):
        return block
    split = SplitAttention(block.attn)
    named = {"q": split.q_proj, "k": split.k_proj, "v": split.v_proj, "out": split.out_proj}
    for linear in named.values():
        linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)  # the fused one is freed
    name = next(name for name, child in block.module.named_children() if child is block.attn)
    setattr(block.module, name, split)
    projections = block.projections | {letter: Projection(module) for letter, module in named.items()}
    return replace(block, attn=split, projections=projections)


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of memory that the parameters and buffers of `module` use, including quantisation scales."""
    tensors: dict[int, Tensor] = {}
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False), *_scales(part)):
            tensors[tensor.untyped_storage().data_ptr()] = tensor
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def _scales(module: nn.Module) -> list[Tensor]:
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        return [value for value in state.as_dict(packed=False).values() if isinstance(value, torch.Tensor)]
    scale = getattr(getattr(module, "state", None), "SCB", None)
    return [scale] if isinstance(scale, torch.Tensor) else []
