"""CLIP-Adapter: a small network on top of the image features, whose output is mixed with them.

Paper: Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, IJCV 2024.
Reference: CLIP-Adapter `08d07f8`, `clip_adapter.py` (its visual adapter; the paper's text adapter is not in it).
Deviations: the network reads features of unit length, which gives the same logits because it has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.methods.base import ImageStep, Method
from adapt.methods.zero_shot import TemplatesConfig


class CLIPAdapterConfig(TemplatesConfig):
    ratio: float = Field(default=0.2, gt=0, le=1)
    """The network's share in the mixed features."""
    reduction: int = Field(default=4, ge=1)
    """The ratio of the features' size to that of the hidden layer."""


class CLIPAdapter(Method[ImageStep]):
    """A small network on image features. `CLIPAdapter(ratio, reduction)` trains `fc.0.weight` and `fc.2.weight`.

    The weights have the shapes `(h, e)` and `(e, h)`, where the hidden size h is e / reduction.
    """

    name = "clip_adapter"
    title = "CLIP-Adapter (Gao et al., IJCV 2024)"
    Config = CLIPAdapterConfig

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.fc = bottleneck(backbone.embed_dim, self.config.reduction).to(backbone.device)

    def logits(self, step: ImageStep) -> Tensor:
        features = step.features.to(next(self.fc.parameters()).dtype)
        mixed = self.config.ratio * self.fc(features) + (1 - self.config.ratio) * features
        return step.cosine_logits(step.class_features, F.normalize(mixed, dim=-1))


def bottleneck(size: int, reduction: int) -> nn.Sequential:
    """Return a network `(..., size) -> (..., size)` without biases, with `size / reduction` hidden units."""
    hidden = max(1, size // reduction)
    return nn.Sequential(nn.Linear(size, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, size, bias=False), nn.ReLU())
