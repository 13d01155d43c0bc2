"""A check that adapt's fast path and the library's own forward (the plain path) give the same features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.absent import Absent
from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower
from adapt.edits import Bypass, Edit


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
