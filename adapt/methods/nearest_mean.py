"""The nearest class mean: an image is of the class whose training images' mean feature points most nearly its way.

Paper: Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017 (prototypes, there of a trained network).
Reference: none; a textbook's classifier.
Deviations: cosines in place of Euclidean distances, at the backbone's own scale; beside zero-shot logits where `words`
asks for them, which is ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.methods.base.plain_classifier import LinearClassifier, class_means


class NearestMean(LinearClassifier):
    """Scaled unit-length class means as `weight` `(n_classes, e)`; its `bias` `(n_classes,)` is zero."""

    name = "nearest_mean"
    title = "Nearest class mean (Snell et al., NeurIPS 2017)"

    def solve(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        means = class_means(features, labels, len(self.bias))
        return self.scale * F.normalize(means, dim=-1), torch.zeros(len(means))
