"""Nearest neighbours: an image gets the majority class of the training images nearest to it.

Papers: Cover and Hart, Nearest Neighbor Pattern Classification, IEEE Transactions on Information Theory 1967; with a
`temperature`, as Oquab et al., DINOv2, TMLR 2024, evaluate features.
References: scikit-learn's `KNeighborsClassifier` (uniform weights), with which it agrees except in ties; dinov2
`b8931f7`, `dinov2/eval/knn.py`.
Deviations: the class of the nearer images wins a tie; in scikit-learn the first class does. DINOv2's weights of
neighbours add up to 1 over the largest number of neighbours that is tried; here, over the neighbours that vote.
`words` adds zero-shot logits, which is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.methods.base import Choice, Training
from adapt.methods.base.plain_classifier import PlainClassifier, PlainClassifierConfig
from adapt.methods.base.traits import KeepsLabels, LearnsShares

BESIDE = 0.05  # votes added for every class, so that the logarithm of no vote is finite
TIE = 1e-3  # of a vote, times the cosine, is added: it decides only ties


class KNNConfig(PlainClassifierConfig):
    neighbours: int | None = Field(default=None, ge=1)
    """The number of training images that vote; null lets the data choose, from 1 to 17."""
    temperature: float | None = Field(default=None, gt=0)
    """The temperature of a softmax over the neighbours' cosines, which weighs their votes (DINOv2: 0.07); by default,
    all votes are equal."""
    rows: int | None = Field(default=None, ge=1)
    """The number of training images in the adapter; training sets it."""
    several: bool = False
    """Whether an image may have several classes; training sets it."""


class KNN(PlainClassifier, KeepsLabels, LearnsShares):
    """A nearest-neighbour classifier. `KNN(neighbours)` stores training `features` `(n, e)` and `labels` `(n,)`.

    Of images with several classes, labels are bool `(n, n_classes)`, and the logits are each class's log-odds.
    """

    name = "knn"
    title = "Nearest neighbours (Cover and Hart, 1967)"
    Config = KNNConfig
    example = {"neighbours": 3, "rows": 6}
    choices = {"neighbours": Choice((1, 3, 5, 9, 17), usual=1, open_ended=False)}
    at_answer = frozenset({"neighbours", "temperature", "words"})
    gives_odds = True
    features: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._classes, rows = len(class_names), self.config.rows or 0
        features = {"features": torch.zeros(rows, backbone.embed_dim)}
        labels = torch.arange(rows) % self._classes
        labels = labels[:, None] == torch.arange(self._classes) if self.config.several else labels
        self.hold(features, labels, backbone.device)

    def prepare(self, training: Training) -> None:
        features, labels = training.features("train"), training.labels("train")
        self.hold({"features": features}, labels, self.features.device)
        self.config = self.config.model_copy(update={"rows": len(features), "several": labels.dim() == 2})

    def scores(self, features: Tensor) -> Tensor:
        """Return the logarithms `(b, n_classes)` of each class's fraction of the nearest neighbours' votes, or odds."""
        votes = self.votes(features) + BESIDE
        return (votes[:, 0] / votes[:, 1] if self.config.several else votes / votes.sum(-1, keepdim=True)).log()

    def votes(self, features: Tensor) -> Tensor:
        """Return the neighbours' votes `(b, n_classes)`; of several classes for and against, `(b, 2, n_classes)`."""
        count = min(int(self.setting("neighbours")), len(self.features))
        near = (features.to(self.features.dtype) @ self.features.T).topk(count)
        if self.config.temperature is None:
            votes = 1 + TIE * near.values
        else:
            votes = count * (near.values / self.config.temperature).softmax(-1)
        labels = self.labels[near.indices]
        if self.config.several:
            return torch.stack([(votes[..., None] * each).sum(1) for each in (labels, ~labels)], 1)
        none = votes.new_zeros(votes.shape[0], self._classes)
        return none.scatter_add(1, labels, votes)
