"""Whether the fast path of a tower applies: no module has a hook, and its features are those of the library's forward.

The fast paths compute a tower from its weights and call few of its modules. A hook on a module would not fire, and a
replaced forward would not be called.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Absent, Tower, modules_of
from adapt.backbones.turns import sharing
from adapt.edits import Bypass, Edit

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
