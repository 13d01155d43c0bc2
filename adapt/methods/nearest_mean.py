"""Nearest class mean: an image gets the class whose mean training feature has the largest cosine with it.

Paper: Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017 (prototypes, there of a trained network).
Reference: none; a textbook's classifier.
Deviations: cosines, at the backbone's own scale, replace Euclidean distances; `words` adds zero-shot logits, which is
ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.methods.base.plain_classifier import LinearClassifier, class_means


class NearestMean(LinearClassifier):
    """A nearest-mean classifier with scaled class means as `weight` `(n_classes, e)` and a zero `bias`."""

    name = "nearest_mean"
    title = "Nearest class mean (Snell et al., NeurIPS 2017)"

    def solve(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        means = class_means(features, labels, len(self.bias))
        return self.scale * F.normalize(means, dim=-1), torch.zeros(len(means))
