"""What the fast paths share: whether they apply to a tower, and the forward of one pre-norm block under edits.

The fast paths compute a tower from its weights and call few of its modules. A hook on a module would not fire, and a
replaced forward would not be called; and features must be those of the library's forward.

Frozen query, key and value projections are one matrix product if they share a weight. QuickGELU takes one pass: since
`x sigmoid(1.702 x) = silu(1.702 x) / 1.702`, the two factors are folded into the products before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from adapt.backbones.base import Backbone
from adapt.backbones.locks import frozen, sharing
from adapt.backbones.split_attention import StandIn
from adapt.backbones.tower import Absent, Block, Projection, Tower, as_one, modules_of
from adapt.edits import Bypass, Edit, Parallel
from adapt.engine.plan import Plan

Structure = list[tuple[int, bool]]  # the identity of each module, and whether it has hooks or another forward
HOOKED = "hooks, or a forward of its own, are on a module, and only the library's forward calls it"
# including those with keywords
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def structure(backbone: Backbone, name: str) -> Structure:
    """Return, for each module of the model except towers other than `name`, its id and whether it has hooks."""
    blocks = {each: {block.module for block in tower.blocks} for each, tower in backbone.towers.items()}
    own = blocks.pop(name, set())
    others = set[nn.Module]().union(*blocks.values()) if own else set[nn.Module]()
    with sharing(backbone.model):
        return [(id(each), _asks(each)) for each in _within(backbone.model, own, others, set())[0]]


def hooked(backbone: Backbone, name: str) -> bool:
    """Return whether any module of the model except towers other than `name` has a hook or a replaced forward."""
    with sharing(backbone.model):
        asks = any(map(_asks, modules_of(backbone.model)))  # mostly none does, of whatever tower
    return asks and any(asks for _, asks in structure(backbone, name))


def _asks(module: nn.Module) -> bool:
    own = vars(module)
    return "forward" in own or any(map(own.get, _HOOKS))


def _within(
    module: nn.Module, own: set[nn.Module], others: set[nn.Module], seen: set[nn.Module]
) -> tuple[list[nn.Module], bool, bool]:
    """Return the modules of `module` except other towers, and whether they include blocks of `own` and of `others`."""
    seen.add(module)
    modules, holds_own, holds_others = [module], module in own, module in others
    for child in module._modules.values():
        if child is None or child in seen:
            continue
        inside, of_own, of_others = _within(child, own, others, seen)
        holds_own, holds_others = holds_own or of_own, holds_others or of_others
        if of_own or not of_others:
            modules += inside
    return modules, holds_own, holds_others


def bypassing_absent(tower: Tower) -> list[Edit]:
    """Return `Bypass` edits for all blocks that were removed from `tower`, so that the tower can run without them."""
    return [Bypass(i, nn.Identity()) for i, block in enumerate(tower.blocks) if isinstance(block.module, Absent)]


def same_features(backbone: Backbone, tower: Tower, plain: Tensor, fast: Tensor) -> bool:
    """Return whether the feature tensors `plain` and `fast` `(n, e)` have equal directions, up to rounding errors."""
    if plain.shape != fast.shape:
        return False
    difference = F.normalize(plain.float(), dim=-1) - F.normalize(fast.float(), dim=-1)
    exact = tower.dtype == torch.float32 and not torch.is_autocast_enabled(backbone.device.type)
    return bool(difference.abs().max() < (1e-4 if exact else 2e-2))


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values `(..., rows, d)` to `(..., queries, d)`
RowIndex = Tensor | slice
_QUICK = 1.702


def run_block(block: Block, index: int, edits: Plan, x: Tensor, attend: Attend, rows: RowIndex | None = None) -> Tensor:
    """Return the output of block number `index` for `x` `(..., l, d)` under `edits`, only for `rows` if given.

    Raises AdaptError if the block was removed from the backbone.
    """
    if isinstance(block.module, Absent):
        block.module()  # raises, naming it
    replaced, beside = edits.replaced.get(index, {}), edits.parallel.get(index, {})
    parts: dict[str, Callable[[Tensor], Tensor]] = {"norm1": block.norm1, "norm2": block.norm2, **block.projections}
    parts |= replaced
    normed = parts["norm1"](x)
    q, k, v = _read(block, replaced, normed, rows)
    if rows is not None:
        x, normed = x[..., rows, :], normed[..., rows, :]
    entered = x
    x = _joined(x + block.scale1(parts["out"](attend(q, k, v))), beside.get("attn"), entered, normed)
    read = parts["norm2"](x)
    x = _joined(x + block.scale2(_mlp(block, replaced, read)), beside.get("mlp"), x, read)
    return _joined(x, beside.get("block"), entered, normed)


def again_in_backward(model: nn.Module, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `block(x)` with gradient checkpointing, which recomputes activations in the backward pass."""
    if not torch.is_grad_enabled():
        return block(x)

    def again(x: Tensor) -> Tensor:
        with frozen(model):
            return block(x)

    return checkpoint(again, x, use_reentrant=False)


def _read(block: Block, replaced: Mapping[str, nn.Module], normed: Tensor, rows: RowIndex | None) -> list[Tensor]:
    """Return queries of `rows` (by default all), and keys and values of all rows, from the normalised input of a block.

    Frozen projections that read all rows are computed as one matrix product if they share a weight. They are computed
    separately if an edit replaces one of the projections with a module that does not call the original projection.
    """
    of_all = "qkv" if rows is None else "kv"
    stand_ins = {
        letter: _stand_in(replaced[letter], block.projections[letter]) for letter in of_all if letter in replaced
    }
    one = as_one([block.projections[letter] for letter in of_all]) if all(stand_ins.values()) else None
    given = {} if one is None else dict(zip(of_all, one(normed).chunk(len(of_all), dim=-1)))
    results = []
    for letter in "qkv":
        # contiguous, or else there would be one product for each image
        x = normed if letter in of_all else normed[..., rows, :].contiguous()
        module = replaced.get(letter)
        if module is None:
            results.append(given[letter] if letter in given else block.projections[letter](x))
            continue
        stand_in = stand_ins[letter] if letter in given else None
        with nullcontext() if stand_in is None else stand_in.giving(given[letter]):
            results.append(module(x))
    return results


def _stand_in(module: nn.Module, projection: Projection) -> StandIn | None:
    """Return the `StandIn` layer in `module` that computes the frozen `projection`, or None if none can be given it."""
    if torch.compiler.is_dynamo_compiling():  # which would break its graph at what a stand-in is given
        return None
    own = projection.module, projection.rows
    stand_ins = (part for part in module.modules() if type(part) is StandIn)
    return next((part for part in stand_ins if (part.projection.module, part.projection.rows) == own), None)


def _mlp(block: Block, replaced: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    fc1, fc2 = block.projections["fc1"], block.projections["fc2"]
    changed = replaced.keys() & {"fc1", "fc2"} or fc1.quantized or fc2.quantized
    transformed = torch._C._are_functorch_transforms_active()  # by torch.func, for which `_QuickMLP` has no rules
    if not block.quick_gelu or changed or transformed or torch.is_autocast_enabled(x.device.type):
        return replaced.get("fc2", fc2)(block.act(replaced.get("fc1", fc1)(x)))
    made: Tensor = _QuickMLP.apply(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return made


class _QuickMLP(torch.autograd.Function):
    """The MLP `fc2(quick_gelu(fc1(x)))` as an autograd function that saves one activation for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None) -> Tensor:
        bias1, bias2 = (x.new_zeros(1) if bias is None else bias for bias in (bias1, bias2))
        inner = torch.addmm(_QUICK * bias1, x.flatten(0, -2), fc1.T, alpha=_QUICK)
        keeps = ctx.needs_input_grad[0]
        if keeps:
            ctx.save_for_backward(inner, fc1, fc2)
        made = torch.addmm(bias2, F.silu(inner, inplace=not keeps), fc2.T, alpha=1 / _QUICK)
        return made.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inner, fc1, fc2 = ctx.saved_tensors  # 1.702 and 1 / 1.702 cancel out
        of_inner = torch.ops.aten.silu_backward(gradient.flatten(0, -2) @ fc2, inner)
        return (of_inner @ fc1).unflatten(0, gradient.shape[:-1]), None, None, None, None


def _joined(x: Tensor, edit: Parallel | None, read: Tensor, normed: Tensor) -> Tensor:
    """Return the residual stream `x` plus the output of a `Parallel` edit, or `x` unchanged if `edit` is None."""
    return x if edit is None else x + edit.module(normed if edit.normed else read)
