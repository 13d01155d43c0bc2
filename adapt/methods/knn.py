"""The nearest neighbours: an image is of the class that most of the training images nearest to it have.

Paper: Cover and Hart, Nearest Neighbor Pattern Classification, IEEE Transactions on Information Theory 1967.
Reference: scikit-learn's `KNeighborsClassifier` (uniform weights), with which it agrees but for ties.
Deviations: of classes with as many votes the one of the nearer images wins, where scikit-learn takes the first; beside
zero-shot logits where `words` asks for them, which is ours.
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
BESIDE = 0.05  # votes that every class has beforehand, so that the logarithm of none is finite
TIE = 1e-3  # of a vote, times the cosine: which decides ties alone


class KNNConfig(PlainClassifierConfig):
    neighbours: int | None = Field(default=None, ge=1)
    """How many training images vote; null leaves it to the data, from 1 to 17."""
    rows: int | None = Field(default=None, ge=1)
    """How many training images the adapter holds; a trained one has it."""


class KNN(PlainClassifier, ChecksAdapter):
    """Keeps the training images' unit-length `features` `(n, e)` and their `labels` `(n,)`."""

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
        """Logarithms of the classes' shares of the votes `(b, n_classes)`."""
        count = min(self.config.neighbours or 1, len(self.features))
        near = (features.to(self.features.dtype) @ self.features.T).topk(count)
        votes = self.features.new_full((len(features), self._classes), BESIDE)
        votes = votes.scatter_add(1, self.labels[near.indices], 1 + TIE * near.values)
        return (votes / votes.sum(-1, keepdim=True)).log()
