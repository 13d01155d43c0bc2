"""Queries between an old backbone's and a new one's, on the great circle through both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEARLY_ALIKE = 1e-6  # sines of angles below which the arc is as good as straight


def slerp(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Unit-length features `(..., d)` at `share` of the way from `old` (0) to `new` (1), both of unit length."""
    angle = (old * new).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - share) * angle).sin() * old + (share * angle).sin() * new) / sine.clamp_min(_NEARLY_ALIKE)
    return F.normalize(torch.where(sine < _NEARLY_ALIKE, torch.lerp(old, new, share), arc), dim=-1)
