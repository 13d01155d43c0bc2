"""Linear discriminant analysis of image features, with a shrunk covariance.

Paper: Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, JMVA 2004 (the
covariance); the classifier is a textbook's (Hastie et al., The Elements of Statistical Learning, section 4.3).
Reference: scikit-learn's `ledoit_wolf`.
Deviations: scikit-learn's own `LinearDiscriminantAnalysis(shrinkage="auto")` shrinks the covariance of each class
separately and averages, which leaves almost nothing of two or three images per class. Here the deviations of all images
from their class means are one sample, whose covariance is shrunk once. `ridge` adds a multiple of the identity that
fades with more images: 1 is what GDA (Wang et al., ICLR 2024) adds to a covariance that is not shrunk, and 0 adds none.
With one image per class there are no deviations, and only the class means decide, as in `nearest_mean`. The average of
the classifiers of several ridges, which fold into one, and `words`, which adds zero-shot logits, are ours.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from adapt.methods.base import Choice
from adapt.methods.base.plain_classifier import LinearClassifier, PlainClassifierConfig, against_covariance, class_means


class LDAConfig(PlainClassifierConfig):
    ridge: NonNegativeFloat | Annotated[dict[NonNegativeFloat, PositiveFloat], Field(min_length=1)] | None = None
    """The multiple of total variance / number of images that is added to every variance; 0 is Ledoit and Wolf's
    covariance. Of several, each with its share (`{0: 0.3, 1: 0.7}`), the classifiers are averaged; null averages those
    of 0, 0.2 and 1, by shares that the data choose."""


class LDA(LinearClassifier):
    """Linear discriminant analysis. `LDA(ridge)` stores `weight` `(n_classes, e)` and `bias` `(n_classes,)`."""

    name = "lda"
    title = "Linear discriminant analysis, shrunk (Ledoit and Wolf, JMVA 2004)"
    Config = LDAConfig
    choices = {"ridge": Choice((0.0, 0.2, 1.0), usual=0.2, averaged=True)}

    def solve(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        means = class_means(features, labels, len(self.bias))
        deviations = features - means[labels]
        if not deviations.any():
            return self.scale * means, torch.zeros(len(means))
        shrinkage, trace = ledoit_wolf(deviations)
        unbiased = 1 / max(1, len(features) - len(means))
        total = len(features) * unbiased * trace  # of all variances, which shrinking leaves as it is
        weight = torch.zeros_like(means)
        for ridge, share in self.shares("ridge").items():
            added = total * (shrinkage / features.shape[1] + ridge / len(features))
            weight += share * against_covariance(means, deviations, added, (1 - shrinkage) * unbiased)
        priors = labels.bincount(minlength=len(means)) / len(labels)
        return weight, priors.log() - (weight * means).sum(-1) / 2


def ledoit_wolf(deviations: Tensor) -> tuple[float, float]:
    """Return Ledoit and Wolf's shrinkage, in [0, 1], of the covariance of `deviations` `(n, e)`, and its trace.

    The shrunk covariance is `(1 - shrinkage) * S + shrinkage * trace / e * I`, where `S` is the mean of outer products.
    """
    count, size = deviations.shape
    squares = deviations.square().sum(-1)
    trace = float(squares.sum()) / count
    # the squares of the entries of S, which are those of the smaller matrix of inner products
    inner = deviations @ deviations.T if count < size else deviations.T @ deviations
    entries = float(inner.square().sum()) / count**2
    noise, apart = (float(squares.square().sum()) / count - entries) / count, entries - trace**2 / size
    return (min(noise, apart) / apart if apart > 0 else 1.0), trace
