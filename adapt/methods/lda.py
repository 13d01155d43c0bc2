"""Linear discriminant analysis of image features, with a shrunk covariance.

Paper: Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, JMVA 2004 (the
covariance); the classifier is a textbook's (Hastie et al., The Elements of Statistical Learning, section 4.3).
Reference: scikit-learn's `ledoit_wolf`.
Deviations: scikit-learn's own `LinearDiscriminantAnalysis(shrinkage="auto")` shrinks the covariance of each class
separately and averages, which leaves almost nothing of two or three images per class. Here the deviations of all images
from their class means are one sample, whose covariance is shrunk once. `ridge` adds a multiple of the identity that
fades with more images: 1 is what GDA (Wang et al., ICLR 2024) adds to a covariance that is not shrunk, and 0 adds none.
With one image per class there are no deviations, and only the class means decide, as in `nearest_mean`. `words` adds
zero-shot logits, which is ours.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import Choice
from adapt.methods.base.plain_classifier import LinearClassifier, PlainClassifierConfig, class_means


class LDAConfig(PlainClassifierConfig):
    ridge: float | None = Field(default=None, ge=0)
    """The multiple of total variance / number of images that is added to every variance; 0 is Ledoit and Wolf's
    covariance, null lets the data choose among 0, 0.2, 1 and 5."""


class LDA(LinearClassifier):
    """Linear discriminant analysis. `LDA(ridge)` stores `weight` `(n_classes, e)` and `bias` `(n_classes,)`."""

    name = "lda"
    title = "Linear discriminant analysis, shrunk (Ledoit and Wolf, JMVA 2004)"
    Config = LDAConfig
    choices = {"ridge": Choice((0.0, 0.2, 1.0, 5.0), usual=1.0)}

    def solve(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from sklearn.covariance import ledoit_wolf

        means = class_means(features, labels, len(self.bias))
        deviations = features - means[labels]
        if not deviations.any():
            return self.scale * means, torch.zeros(len(means))
        covariance = torch.from_numpy(ledoit_wolf(deviations.numpy(), assume_centered=True)[0])
        covariance *= len(features) / max(1, len(features) - len(means))  # an unbiased estimate
        covariance += self.setting("ridge") * covariance.trace() / len(features) * torch.eye(len(covariance))
        weight = torch.linalg.solve(covariance, means.T).T
        priors = labels.bincount(minlength=len(means)) / len(labels)
        return weight, priors.log() - (weight * means).sum(-1) / 2
