"""Learning from texts alone: a classifier of text features, under noise that lets it take those of images for them.

Paper: Gu, Clark and Kembhavi, I Can't Believe There's No Images! Learning Visual Tasks Using only Language Supervision,
ICCV 2023 (CLOSE).
Reference: close `80f8db0`, `close/model/clip_t5_model.py`, `close/model/language_adapters.py`.
Deviations:
* The map of the noisy feature, `lin`, gives the logits of classes; the reference's gives four tokens to a T5, which
  learns with it. What goes in is the same.
* Of its variants on the text side (mean shift, ridge regression, covariance) there is none, nor the mean of several
  captions of an image, nor words or constant tokens beside the feature (`context`), which only a T5 reads.

Trained on images it is a linear classifier under noise, as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.methods.base import ImageStep, Method, MethodConfig


class CloseConfig(MethodConfig):
    noise: float = Field(default=0.08, ge=0)
    """Standard deviation of what is added to each value of a unit-length feature, in training. The reference's are 0.04
    to 0.12 of 768 values; with fewer it takes more, in inverse proportion to the square root, for as much in all."""


class Close(Method[ImageStep]):
    """`Close(noise)` trains `lin.weight` `(n_classes, e)` and `lin.bias` `(n_classes,)`."""

    name = "close"
    title = "CLOSE (Gu et al., ICCV 2023)"
    Config = CloseConfig
    example = {"noise": 0.0}
    needs_every_class = True
    per_class = True

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.lin = nn.Linear(backbone.embed_dim, len(class_names), device=backbone.device)

    def logits(self, step: ImageStep) -> Tensor:
        features = step.features.to(self.lin.weight.dtype)
        logits: Tensor = self.lin(noisy(features, self.config.noise) if self.training else features)
        return logits


def noisy(features: Tensor, scale: float) -> Tensor:
    """Unit-length features `(b, e)` with Gaussian noise of that scale, at unit length again."""
    return F.normalize(features + scale * torch.randn_like(features), dim=-1)
