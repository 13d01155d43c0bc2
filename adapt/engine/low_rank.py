"""Low-rank weight updates that differ between images, applied to the layers of one decoder block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapt.backbones.tower import Block
from adapt.common.errors import AdaptError
from adapt.edits import LowRank
from adapt.engine.patching import forward_as


@contextmanager
def updated(block: Block, updates: dict[str, LowRank], merge: bool) -> Iterator[None]:
    """Apply low-rank `updates` to projections (or the MLP) of `block` in the `with` block.

    With `merge`, updates for a single image are folded into copies of the weights, for floating-point linear layers
    that no other edit replaces. All other updates run as a second branch beside the frozen weights.
    """
    merged: dict[nn.Linear, dict[str, LowRank]] = {}
    with ExitStack() as stack:
        for site, update in updates.items():
            linear = block.projections[site].module if merge and site in block.projections else None
            if type(linear) is nn.Linear and _mergeable(linear, update):
                merged.setdefault(linear, {})[site] = update
            else:
                stack.enter_context(_beside(block, site, update))
        for linear, own in merged.items():
            stack.enter_context(forward_as(linear, _merged(linear, block, own)))
        yield


def _mergeable(linear: nn.Linear, update: LowRank) -> bool:
    return "forward" not in vars(linear) and linear.weight.is_floating_point() and len(update.down) == 1


def _merged(linear: nn.Linear, block: Block, updates: dict[str, LowRank]) -> Callable[[Tensor], Tensor]:
    weight = linear.weight.detach()
    rows = {site: block.projections[site].rows for site in updates}
    if None in rows.values():  # one update of the full weight, which need not be copied first
        (update,) = updates.values()
        weight = _plus(weight, update)
    else:
        weight = weight.clone()
        for site, update in updates.items():
            weight[rows[site]] = _plus(weight[rows[site]], update)
    return partial(F.linear, weight=weight, bias=linear.bias)


def _plus(weight: Tensor, update: LowRank) -> Tensor:
    """Return `weight` plus the low-rank update `scale * up @ down.T` of a single image, computed in fp32."""
    up, down = update.up[0].float(), update.down[0].float()
    return torch.addmm(weight.float(), up, down.T, alpha=update.scale).to(weight.dtype)


def _beside(block: Block, site: str, update: LowRank) -> RemovableHandle:
    added_by = partial(_change, update.scale * update.down, update.up.transpose(1, 2))
    projection = block.projections.get(site)
    owner, rows = (block.mlp, None) if projection is None else (projection.module, projection.rows)
    assert owner is not None  # the plan refuses a site that the block does not have

    def join(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = added_by(inputs[0])
        if rows is None:
            return output + added
        index = torch.arange(output.shape[-1])[rows].to(output.device)
        return output.index_add(-1, index, added.to(output.dtype))

    return owner.register_forward_hook(join)


def _change(down: Tensor, up: Tensor, x: Tensor) -> Tensor:
    """Return the low-rank term `x @ down @ up` `(n, l, out)` for `x` `(n, l, in)`, with factors for each image.

    `down` is `(images, in, rank)`, and `up` is `(images or 1, rank, out)`. `n` is a multiple of the number of images,
    and the rows of each image are adjacent.
    """
    images = len(down)
    if len(x) % images:
        raise AdaptError(f"{len(x)} rows cannot be divided evenly among the low-rank updates of {images} images")
    of_images = x.reshape(images, -1, x.shape[-1])
    return (of_images @ down.to(x.dtype) @ up.to(x.dtype)).reshape(*x.shape[:-1], -1)
