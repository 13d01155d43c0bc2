"""CLOSE: a classifier learned from texts alone, under noise that lets it transfer to image features.

Paper: Gu, Clark and Kembhavi, I Can't Believe There's No Images! Learning Visual Tasks Using only Language Supervision,
ICCV 2023 (CLOSE).
Reference: close `80f8db0`, `close/model/clip_t5_model.py`, `close/model/language_adapters.py`.
Deviations:
* The linear map of the noisy feature, `lin`, gives class logits; the reference's map gives four tokens to a T5 that
  trains with it. Their input is the same.
* The mean shift is from the training texts to unlabelled images of the task; the reference's is from other pairs. Its
  variants that need such pairs (ridge regression, covariance) are left out, as are the mean of several captions of an
  image, and words or constant tokens beside the feature (`context`), which only a T5 reads.

Trained on images, it is an ordinary linear classifier under noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.methods.base import ImageStep, Method, MethodConfig, Training
from adapt.methods.base.traits import LearnsUnlabelled


class CloseConfig(MethodConfig):
    noise: float = Field(default=0.08, ge=0)
    """Standard deviation of the noise on each value of a unit-length feature, in training. The reference uses 0.04 to
    0.12 for 768 values. For the same total noise, scale it inversely with the square root of the number of values."""
    shift: float = Field(default=0.0, ge=0)
    """How much of the way from the mean text to the mean unlabelled image is added to texts in training; 1 is all."""


class Close(Method[ImageStep], LearnsUnlabelled):
    """A linear classifier trained on noisy text features, with `lin.weight` `(n_classes, e)` and `lin.bias`."""

    name = "close"
    title = "CLOSE (Gu et al., ICCV 2023)"
    Config = CloseConfig
    example = {"noise": 0.0}
    needs_every_class = True
    per_class = True
    learns_any_step = True
    _shift: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.lin = nn.Linear(backbone.embed_dim, len(class_names), device=backbone.device)
        self.register_buffer("_shift", torch.zeros(backbone.embed_dim, device=backbone.device), persistent=False)

    @property
    def reads_unlabelled(self) -> bool:
        return bool(self.config.shift)

    def prepare(self, training: Training) -> None:
        if self.reads_unlabelled:
            away = training.features("unlabelled").mean(0) - training.features("train").mean(0)
            self._shift = self.config.shift * away.to(self._shift)

    def logits(self, step: ImageStep) -> Tensor:
        features = step.features.to(self.lin.weight.dtype)
        logits: Tensor = self.lin(noisy(features + self._shift, self.config.noise) if self.training else features)
        return logits


def noisy(features: Tensor, scale: float) -> Tensor:
    """Return `features` `(b, e)` plus Gaussian noise of standard deviation `scale`, normalised to unit length."""
    return F.normalize(features + scale * torch.randn_like(features), dim=-1)
