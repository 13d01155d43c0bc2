"""Whether two ways to the same features agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower


def same_features(backbone: Backbone, tower: Tower, plain: Tensor, fast: Tensor) -> bool:
    """Whether features `(n, e)` point the same way, by the rounding of the precision that they were computed in."""
    if plain.shape != fast.shape:
        return False
    difference = F.normalize(plain.float(), dim=-1) - F.normalize(fast.float(), dim=-1)
    exact = tower.dtype == torch.float32 and not torch.is_autocast_enabled(backbone.device.type)
    return bool(difference.abs().max() < (1e-4 if exact else 2e-2))
