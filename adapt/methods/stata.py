"""StatA: a set of images answered together, where each class is a Gaussian held to what its text says.

Paper: Zanella et al., Realistic Test-Time Adaptation of Vision-Language Models, CVPR 2025 (StatA).
Reference: StatA `eea8637`, `solvers/StatA.py`, `main.py`.
Deviations:
* The initial variance is the mean over all images; the reference divides by their number once for each piece of 2,500
  images, so that it gets too small for larger sets.
* A class that no image belongs to keeps its text's Gaussian; in the reference, its probabilities can become NaN.
* An image is never its own neighbour; of two equal images, the reference may leave out the other one.
* Cosines have the backbone's logit scale; the reference has 100, which is CLIP's.
* On top of other methods, the classifier's own answers are theirs (our reading).

Nothing trains, and an adapter holds no tensors. `predict` answers each image by itself, as zero-shot classification;
`predict_together` answers a set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep
from adapt.methods.base.transduction import Gaussians, Moments, Transduction, TransductionConfig


class StatAConfig(TransductionConfig):
    alpha: float = Field(default=1.0, ge=0)
    """How strongly a class is held to its text: as much as by so many images."""
    soft_counts: bool = False
    """Count the images of a class by their probabilities, not by their most probable class."""


class StatA(Transduction):
    """A training-free method that answers a set of images together, of which any number of classes may be absent."""

    name = "stata"
    title = "StatA (Zanella et al., CVPR 2025)"
    Config = StatAConfig

    def start(self, step: ImageStep) -> Gaussians:
        features, texts = step.features, step.class_features
        spread = Moments.of(features, step.logits.softmax(-1)).around(texts).sum(0, keepdim=True) / features.shape[0]
        return Gaussians(texts, spread.expand_as(texts))

    def fitted(self, features: Tensor, weights: Tensor, start: Gaussians) -> Gaussians:
        texts, share = start.mean, self.share(weights)
        seen = Moments.of(features, weights)
        mean = F.normalize(share * seen.direction + (1 - share) * texts, dim=-1)
        variance = seen.around(mean) / seen.weight.clamp_min(torch.finfo(seen.weight.dtype).tiny)
        return Gaussians(mean, share * variance + (1 - share) * (start.variance + (texts - mean).square()))

    def share(self, weights: Tensor) -> Tensor:
        """Return the weight of the images in each class `(c, 1)`, against the text, from probabilities `(n, c)`."""
        if self.config.soft_counts:
            count = weights.sum(0)
        else:
            count = weights.argmax(-1).bincount(minlength=weights.shape[-1]).to(weights)
        return (count / (self.config.alpha + count).clamp_min(torch.finfo(count.dtype).tiny))[:, None]
