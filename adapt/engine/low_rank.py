"""Low-rank updates of each image inside one decoder block: beside the frozen maps, or merged into copies of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.tower import Block, Projection
from adapt.edits import LowRank
from adapt.engine.patching import forward_as
from adapt.errors import AdaptError


@contextmanager
def updated(block: Block, updates: dict[str, LowRank], merge: bool) -> Iterator[None]:
    """Inside, the sites of `block` compute with their updates.

    With `merge`, updates of a single image are folded into copies of the weights they fit into: frozen linears in
    floating point that nothing else replaces. The others run beside theirs.
    """
    merged: dict[nn.Module, dict[str, LowRank]] = {}
    with ExitStack() as stack:
        for site, update in updates.items():
            projection = block.projections.get(site)
            if merge and projection is not None and _mergeable(projection, update):
                merged.setdefault(projection.module, {})[site] = update
            else:
                handle = _beside(block, site, update)
                stack.callback(handle.remove)
        for module, own in merged.items():
            stack.enter_context(forward_as(module, _merged(module, block, own)))
        yield


def _mergeable(projection: Projection, update: LowRank) -> bool:
    module: Any = projection.module
    unchanged = type(module) is nn.Linear and "forward" not in vars(module)
    return unchanged and module.weight.is_floating_point() and len(update.down) == 1


def _merged(module: Any, block: Block, updates: dict[str, LowRank]) -> Any:
    weight = module.weight.detach().clone()
    for site, update in updates.items():
        rows = block.projections[site].rows
        own = slice(None) if rows is None else rows
        up, down = update.up[0].float(), update.down[0].float()
        weight[own] = torch.addmm(weight[own].float(), up, down.T, alpha=update.scale).to(weight.dtype)
    return partial(F.linear, weight=weight, bias=module.bias)


def _beside(block: Block, site: str, update: LowRank) -> Any:
    if site == "mlp":
        return _mlp(block).register_forward_hook(lambda module, inputs, output: output + _change(inputs[0], update))
    projection = block.projections[site]
    rows = projection.rows

    def join(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        change = _change(inputs[0], update)
        if rows is None:
            return output + change
        index = torch.arange(output.shape[-1])[rows].to(output.device)
        return output.index_add(-1, index, change.to(output.dtype))

    return projection.module.register_forward_hook(join)


def _mlp(block: Block) -> nn.Module:
    if block.mlp is None:
        raise AdaptError("this tower has no MLP that can be updated as a whole")
    return block.mlp


def _change(x: Tensor, update: LowRank) -> Tensor:
    """`scale * x @ down @ up.T` `(n, l, out)` of `x` `(n, l, in)`, rows shared out among the images."""
    images = len(update.down)
    if len(x) % images:
        raise AdaptError(f"{len(x)} rows cannot be shared out among the updates of {images} images")
    down, up = update.down.to(x.dtype), update.up.to(x.dtype)
    down = down.repeat_interleave(len(x) // images, dim=0)
    up = up if len(up) == 1 else up.repeat_interleave(len(x) // images, dim=0)
    return update.scale * (x @ down) @ up.transpose(1, 2)
