"""Spherical interpolation between the features of two backbones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEARLY_ALIKE = 1e-6  # sines of angles below which linear interpolation is used


def slerp(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Return unit-length features `(..., d)`, interpolated spherically from `old` (`share` 0) to `new` (`share` 1)."""
    angle = (old * new).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - share) * angle).sin() * old + (share * angle).sin() * new) / sine.clamp_min(_NEARLY_ALIKE)
    return F.normalize(torch.where(sine < _NEARLY_ALIKE, torch.lerp(old, new, share), arc), dim=-1)
