"""Nearest neighbours: an image gets the majority class of the training images nearest to it.

Paper: Cover and Hart, Nearest Neighbor Pattern Classification, IEEE Transactions on Information Theory 1967.
Reference: scikit-learn's `KNeighborsClassifier` (uniform weights), with which it agrees except in ties.
Deviations: the class of the nearer images wins a tie; in scikit-learn the first class does. `words` adds zero-shot
logits, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.methods.base import Choice, Training
from adapt.methods.base.kept_labels import check_labels_of
from adapt.methods.base.plain_classifier import PlainClassifier, PlainClassifierConfig
from adapt.methods.base.traits import ChecksAdapter

NEIGHBOURS = Choice((1, 3, 5, 9, 17), usual=1, open_ended=False)
BESIDE = 0.05  # votes added for every class, so that the logarithm of no vote is finite
TIE = 1e-3  # of a vote, times the cosine, is added: it decides only ties


class KNNConfig(PlainClassifierConfig):
    neighbours: int | None = Field(default=None, ge=1)
    """The number of training images that vote; null lets the data choose, from 1 to 17."""
    rows: int | None = Field(default=None, ge=1)
    """The number of training images in the adapter; training sets it."""


class KNN(PlainClassifier, ChecksAdapter):
    """A nearest-neighbour classifier. `KNN(neighbours)` stores training `features` `(n, e)` and `labels` `(n,)`."""

    name = "knn"
    title = "Nearest neighbours (Cover and Hart, 1967)"
    Config = KNNConfig
    example = {"neighbours": 3, "rows": 6}
    at_answer = frozenset({"neighbours", "words"})
    features: Tensor
    labels: Tensor

    def grid(self, training: Training) -> dict[str, Choice]:
        neighbours = {"neighbours": NEIGHBOURS} if self.config.neighbours is None else {}
        return neighbours | super().grid(training)

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._classes, rows = len(class_names), self.config.rows or 0
        self._hold(torch.zeros(rows, backbone.embed_dim), torch.arange(rows) % self._classes, backbone.device)

    def _hold(self, features: Tensor, labels: Tensor, device: torch.device) -> None:
        self.register_buffer("features", features.to(device))
        self.register_buffer("labels", labels.to(device))

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        check_labels_of(tensors["labels"], self._classes, source)

    def prepare(self, training: Training) -> None:
        features = training.features("train")
        self._hold(features, training.labels("train"), self.features.device)
        self.config = self.config.model_copy(update={"rows": len(features)})

    def scores(self, features: Tensor) -> Tensor:
        """Return the logarithms `(b, n_classes)` of each class's fraction of the nearest neighbours' votes."""
        count = min(self.config.neighbours or 1, len(self.features))
        near = (features.to(self.features.dtype) @ self.features.T).topk(count)
        votes = self.features.new_full((features.shape[0], self._classes), BESIDE)
        votes = votes.scatter_add(1, self.labels[near.indices], 1 + TIE * near.values)
        return (votes / votes.sum(-1, keepdim=True)).log()
