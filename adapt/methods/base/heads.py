"""Classifiers in the attention heads of a native vision-language model, of which the best few answer together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.common.devices import doubled
from adapt.common.errors import AdaptError
from adapt.methods.base.method import Method, MethodConfig
from adapt.methods.base.step import ImageStep
from adapt.methods.base.traits import ChecksAdapter, OwnClassifier, ReadsHeads

Fitted = tuple[Tensor, Tensor]  # in one head, weights (n_classes, d) and biases (n_classes,)


class ClassifyingHeadsConfig(MethodConfig):
    heads: int = Field(default=20, ge=1)
    """The number of attention heads that answer together: the best on the training images, or all of fewer."""


class ClassifyingHeads(Method[ImageStep], OwnClassifier, ReadsHeads, ChecksAdapter):
    """The base of methods with a linear classifier in each of the k best heads.

    They store which `heads` `(k,)` these are, the best first, counted layer by layer, their `weight`
    `(k, n_classes, d)`, for vectors of unit length, and their `bias` `(k, n_classes)`.
    """

    Config = ClassifyingHeadsConfig
    serves = ("vision encoder",)
    needs_every_class = True
    per_class = True
    takes_steps = False
    heads: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def wanted(self) -> tuple[int, ...]:
        """The number of heads to keep, for each way of classifying."""
        return (self.config.heads,)

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        assert backbone.heads is not None  # as is checked for all methods that read heads
        layers, heads, self.size = backbone.heads
        self.kept, self._all = [min(count, layers * heads) for count in self.wanted], layers * heads
        count, classes, device = sum(self.kept), len(class_names), backbone.device
        self.register_buffer("heads", torch.zeros(count, dtype=torch.long, device=device))
        self.register_buffer("weight", torch.zeros(count, classes, self.size, device=device))
        self.register_buffer("bias", torch.zeros(count, classes, device=device))

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        if not 0 <= int(tensors["heads"].min()) <= int(tensors["heads"].max()) < self._all:
            raise AdaptError(f"{source} names a head beyond the {self._all} of the backbone: train the adapter again")

    def each(self, features: Tensor) -> Iterator[Tensor]:
        """Yield the vectors `(n, d)` of each head in features `(n, e)`, in double precision."""
        for vectors in features.unflatten(-1, (self._all, self.size)).unbind(1):
            yield doubled(vectors)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return how well a head with these logits `(n, n_classes)` tells the training images with `labels` apart."""
        raise NotImplementedError

    def keep(self, vectors: Sequence[Tensor], labels: Tensor, *ways: Sequence[Fitted]) -> None:
        """Keep the heads with the highest scores, for each way of classifying; of equals, the deeper come first.

        Each head has vectors `(n, d)` of the training images, and in each way, what is fitted to them.
        """
        kept = []
        for count, fitted in zip(self.kept, ways, strict=True):
            scores = [self.score(own @ weight.T + bias, labels) for own, (weight, bias) in zip(vectors, fitted)]
            order = torch.stack(scores).flip(0).argsort(descending=True, stable=True)
            kept += [(head, *fitted[head]) for head in len(scores) - 1 - order[:count]]
        heads, weight, bias = map(torch.stack, zip(*kept, strict=True))
        self.heads, self.weight, self.bias = heads.to(self.heads), weight.to(self.weight), bias.to(self.bias)

    def of_heads(self, features: Tensor) -> Tensor:
        """Return the logits `(b, k, n_classes)` of each of the heads that are kept, for features `(b, e)`."""
        vectors = features.unflatten(-1, (self._all, self.size))[:, self.heads].to(self.weight)
        return torch.einsum("bkd,kcd->bkc", F.normalize(vectors, dim=-1), self.weight) + self.bias
