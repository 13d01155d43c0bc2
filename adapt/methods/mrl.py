"""MRL: features of which any number of the first values may be used, by a map that is learned at several lengths.

Paper: Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022 (MRL).
Reference: RAIVNLab/MRL `7ccb42d`, `MRL.py`: the classifiers `heads` (MRL) and `shared` (MRL-E), and the summed loss.
Deviations:
* The published code trains a whole backbone from scratch. Here the backbone stays frozen, and a square map of its
  features is learned in place of it, which is ours. So is the classifier `names`, which compares images with texts in
  the same map, so that classes need no tensors of their own and retrieval uses the map too.
* Shortened features are normalised, for the heads to length sqrt(n) at n values. With `rescale: false` heads read them
  as they come, as published, where whole features are not of unit length as they are here.
* The lengths are 8 and its doubles up to the size of a feature, as published for ResNet-50's 2048.
* The start `pca` is ours: it orders the directions of the training features by variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep, Method, PairStep, Space, Terms, Training
from adapt.methods.base.nested import Nested, powers
from adapt.methods.base.traits import Projects
from adapt.methods.zero_shot import TemplatesConfig
from adapt.prompts import Prompt, several

_SHORTEST = 8


class MRLConfig(TemplatesConfig):
    nesting: tuple[PositiveInt, ...] | None = None
    """The lengths of features that are trained, ascending up to all values; by default 8, 16, 32 and so on."""
    importance: tuple[PositiveFloat, ...] | None = None
    """The weight of each length's loss; by default 1 each."""
    start: Literal["pca", "identity"] = "pca"
    """The first map: the principal components of images and texts together, or the identity."""
    classifier: Literal["names", "heads", "shared"] = "names"
    """Cosines with class names, a linear classifier for each length (MRL), or one whose columns all share (MRL-E)."""

    rescale: bool = True
    """Whether shortened features are normalised; if not, heads read the first values of a feature of unit length."""

    @model_validator(mode="after")
    def _lengths(self) -> MRLConfig:
        if not self.rescale and self.classifier == "names":
            raise ValueError("rescale is false, but names are compared by cosines: set classifier to heads or shared")
        if self.nesting is not None and list(self.nesting) != sorted(set(self.nesting)):
            raise ValueError(f"nesting is {list(self.nesting)}; expected ascending lengths, such as [8, 16, 32]")
        if self.importance is not None and len(self.importance) != len(self.nesting or ()):
            raise ValueError("importance needs a weight for each length: give nesting, and as many weights")
        return self


class MRLAtUse(BaseModel, extra="forbid", frozen=True):
    """The settings that can be changed at inference."""

    dim: int | None = Field(default=None, ge=1)
    """The number of values of a feature; by default all."""


class MRL(Nested, Method[ImageStep], Projects):
    """Nested features. `MRL(nesting)` trains `weight` `(e, e)`, a map of the features of images and texts.

    With `classifier: heads`, `nesting_classifier_0` and so on are linear layers, one for each length.
    """

    at_use: MRLAtUse = MRLAtUse()
    nesting_classifier_0: nn.Linear
    name = "mrl"
    title = "Matryoshka Representation Learning (Kusupati et al., NeurIPS 2022), on frozen features"
    Config = MRLConfig
    tasks = frozenset({"classes", "pairs"})
    learns_any_step = True
    space: Space | None = None
    counted, counted_as = "dim", "values of a feature"

    @property
    def per_class(self) -> bool:
        return bool(self.config.classifier != "names")

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        size, device = backbone.embed_dim, backbone.device
        self.nesting = self.config.nesting or powers(_SHORTEST, size)
        if self.nesting[-1] != size:
            raise AdaptError(
                f"mrl: nesting ends with {self.nesting[-1]}, but a feature of {backbone.describe()} has {size} values: "
                f"let method.nesting end with {size}"
            )
        if self.per_class and not class_names:
            raise AdaptError(
                f"mrl: the classifier {self.config.classifier} needs classes, but the data has none: set "
                "method.classifier to names"
            )
        self.weight = nn.Parameter(torch.eye(size, device=device))
        lengths = {"names": (), "heads": self.nesting, "shared": (size,)}[self.config.classifier]
        for number, length in enumerate(lengths):
            setattr(self, f"nesting_classifier_{number}", nn.Linear(length, len(class_names), device=device))

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return [] if self.per_class else super().prompts(tokenizer, class_name)

    @torch.no_grad()
    def prepare(self, training: Training) -> None:
        """Begin with the principal components, if so set. A map that goes on from an earlier adapter stays."""
        if self.config.start == "pca" and not training.started:
            texts = sorted({item.text for item in training.items("train")} - {""})
            model = training.alone().classifier
            prompts = texts or [
                template.replace("{}", name)
                for name in training.model.class_names
                for template in several(self.config.template)
            ]
            rows = training.features("train"), model.text_features(prompts).float().cpu()
            self.weight.copy_(principal_components(rows))

    def project(self, features: Tensor) -> Tensor:
        projected = features.to(self.weight.dtype) @ self.weight
        whole = self.training or not self.config.rescale  # the model would normalise what is cut here
        return projected if whole else projected[..., : self.at_use.dim]

    def logits(self, step: ImageStep) -> Tensor:
        whole = step.features.shape[-1]
        return self.logits_at(step, whole if self.training else self.at_use.dim or whole)

    def logits_at(self, step: ImageStep, length: int) -> Tensor:
        """Return logits `(b, n)` of a batch from the first `length` values of its features."""
        if not self.config.rescale:
            return self.classify(step.features[:, :length])
        features = F.normalize(step.features[:, :length], dim=-1)
        if self.per_class:
            return self.classify(features * sqrt(length))
        texts = step.text_features if isinstance(step, PairStep) else step.class_features
        return step.cosine_logits(F.normalize(texts[:, :length], dim=-1), features)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits `(b, n)` of the linear classifier for shortened features `(b, length)`."""
        length = features.shape[-1]
        if self.config.classifier == "shared":
            return F.linear(features, self.nesting_classifier_0.weight[:, :length], self.nesting_classifier_0.bias)
        head: nn.Linear = getattr(self, f"nesting_classifier_{self.nesting.index(length)}")
        logits: Tensor = head(features)
        return logits

    def loss(self, step: ImageStep) -> Terms:
        """Return the loss of the task at each length, times its importance."""
        terms: Terms = {}
        for length, importance in zip(self.nesting, self.config.importance or [1.0] * len(self.nesting), strict=True):
            shortened = step.task_loss(self.logits_at(step, length))
            terms |= {f"{name}_{length}": importance * term for name, term in shortened.items()}
        return terms

    def check_at_use(self, settings: MRLAtUse) -> None:
        dim, most = settings.dim or 1, self.nesting[-1]
        if self.config.classifier == "heads" and settings.dim not in (None, *self.nesting):
            raise AdaptError(f"dim is {dim}; expected one of {', '.join(map(str, self.nesting))}, which have a head")
        if dim > most:
            raise AdaptError(f"dim is {dim}; expected at most {most}, the values of a feature")

    @property
    def compared(self) -> tuple[int, ...]:
        return self.nesting


def principal_components(groups: Sequence[Tensor]) -> Tensor:
    """Return the principal directions `(e, e)` of groups of features `(n, e)` as columns, the largest variance first.

    Each group is centred by itself, because images and texts lie apart, and counts the same.
    """
    covariance = sum(torch.cov(group.double().T, correction=0) for group in groups)
    _, directions = torch.linalg.eigh(covariance)
    return directions.flip(-1).float()
