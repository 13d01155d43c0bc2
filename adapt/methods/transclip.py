"""TransCLIP: a set of images answered together, where each class is a Gaussian that starts at its surest images.

Paper: Zanella et al., Boosting Vision-Language Models with Transduction, NeurIPS 2024 (TransCLIP).
Reference: transduction-for-vlms `6a9e8f3`, `TransCLIP_solver/*.py` (zero-shot).
Deviations:
* The classes are all that the model knows; the reference counts those among the labels.
* An image is never its own neighbour; of two equal images, the reference may leave out the other one.
* Cosines have the backbone's logit scale; the reference has 100, which is CLIP's.
* On top of other methods, the classifier's own answers are theirs (our reading).
Left out: the few-shot version, whose published code mixes up the neighbours of labelled and unlabelled images.

Nothing trains, and an adapter holds no tensors. `predict` answers each image by itself, as zero-shot classification;
`predict_together` answers a set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep
from adapt.methods.base.transduction import (
    Gaussians,
    Moments,
    Transduction,
    TransductionConfig,
    doubt_of_absent_classes,
)


class TransCLIPConfig(TransductionConfig):
    surest: int = Field(default=8, ge=1)
    """The number of images of each class, the most probable ones, at whose mean the class starts."""


class TransCLIP(Transduction):
    """A training-free method that answers a set of images together, in which every class should have images."""

    name = "transclip"
    title = "TransCLIP (Zanella et al., NeurIPS 2024)"
    Config = TransCLIPConfig
    example = {"surest": 2, "neighbours": 2}

    @property
    def smallest(self) -> int:
        return max(super().smallest, int(self.config.surest))

    def start(self, step: ImageStep) -> Gaussians:
        """Return the Gaussians at the start, whose means are those of each class's surest images."""
        features = step.features
        surest = step.logits.softmax(-1).topk(self.config.surest, dim=0)
        weighted = surest.values[..., None] * features[surest.indices]  # (s, c, e)
        variance = torch.full_like(features[:1], 1 / features.shape[-1])
        return Gaussians(F.normalize(weighted.sum(0), dim=-1), variance)

    def fitted(self, features: Tensor, weights: Tensor, start: Gaussians) -> Gaussians:
        seen = Moments.of(features, weights)
        spread = seen.around(seen.direction).sum(0, keepdim=True)
        return Gaussians(seen.direction, spread / features.shape[0])

    def doubt(self, step: ImageStep) -> str:
        images, classes = step.logits.shape
        if images < self.config.surest * classes:
            return f"{images} images are few for {classes} classes, of which each starts at {self.config.surest} images"
        return doubt_of_absent_classes(step.logits)
