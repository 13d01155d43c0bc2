"""Nearest class mean: an image gets the class whose mean training feature is nearest to its own.

Papers: Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017 (prototypes, of a trained network);
Wang et al., SimpleShot, 2019 (of frozen features, whose L2N is `distance: euclidean`).
Reference: simple_shot `5d38fc8`, `src/train.py`.
Deviations: by default, cosines replace Euclidean distances. Features have unit length, and are not centred by the mean
of base classes (CL2N), which do not exist here. Logits have the backbone's own scale; `words` adds zero-shot logits,
which is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.methods.base.plain_classifier import LinearClassifier, PlainClassifierConfig, class_means
from adapt.methods.base.traits import LearnsShares


class NearestMeanConfig(PlainClassifierConfig):
    distance: Literal["cosine", "euclidean"] = "cosine"
    """How an image is compared with a class mean; Euclidean distances favour means of similar images."""


class NearestMean(LinearClassifier, LearnsShares):
    """A nearest-mean classifier with scaled class means as `weight` `(n_classes, e)` and a `bias` `(n_classes,)`.

    The logits are cosines, or half the negative squared distances up to a constant of the image, times the logit scale.
    """

    name = "nearest_mean"
    title = "Nearest class mean (Snell et al., NeurIPS 2017; SimpleShot, 2019)"
    Config = NearestMeanConfig

    def solve(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        means = class_means(features, labels, len(self.bias))
        if self.config.distance == "cosine":
            return self.scale * F.normalize(means, dim=-1), torch.zeros(len(means))
        return self.scale * means, -self.scale * means.square().sum(-1) / 2
