"""HEC: Gaussian classifiers in attention heads, by images, by class names or by both; the best heads answer together.

Paper: de Senneville et al., ECCV 2026 (arXiv 2603.24181), whose HEC-V, HEC-T and HEC-VT are `by` images, names, both.
Reference: HEC `0e282e1`, `src/fewshot/{classifier,prompt}.py`.
Deviations:
* Heads for class names are chosen on the training images; the reference also has lists that were chosen on other data.
* The question is the backbone's, behind images as behind class names; the reference has one for each data set.
* Texts about class names do not list all classes; those of the reference may, of which it then cuts lists after 25.
* A head whose vectors do not differ within classes answers by the classes' shares. Where all are so, as with one image
  of each class, training by images alone is refused. The reference divides by zero, or answers by chance.
* Of heads with equal scores, the deeper come first; the reference sorts them in no fixed order.
* Logits are logarithms of the mean probabilities, which a temperature that training cross-validates sharpens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base import Choice, Grid, ImageStep, Training
from adapt.methods.base.heads import ClassifyingHeads, ClassifyingHeadsConfig, Fitted
from adapt.methods.base.plain_classifier import against_covariance, class_means
from adapt.prompts import readable

if TYPE_CHECKING:
    from adapt.backbones.native_eyes import NativeEyes

_NEEDS = (
    "needs two or more different images of a class to learn from, three to be calibrated by folds, and there are none: "
    "use more shots, or set method.by to names or both"
)
_FLAT = 1e-12  # of the variance of vectors of unit length, which rounding alone does not reach


class HECConfig(ClassifyingHeadsConfig):
    by: Literal["images", "names", "both"] = "images"
    """What classes are known by: Gaussians of the training images, vectors of the class names, or the sum of both."""
    temperature: float = Field(default=10.0, gt=0)
    """Divides the logits of a head by images."""
    ridge: float = Field(default=1.0, gt=0)
    """The multiple of the mean variance that is added to the variances of a head's vectors."""
    name_heads: int = Field(default=20, ge=1)
    """The number of heads that answer by class names."""
    name_temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of a head by class names."""
    alpha: float | None = Field(default=1.0, ge=0)
    """Weight of the images beside the class names, where both answer; null lets the data choose 0.1, 1 or 10."""


class HEC(ClassifyingHeads, Grid):
    """Mean probabilities of Gaussian classifiers, which share a covariance in each head, or of nearest class names."""

    name = "hec"
    title = "HEC (de Senneville et al., ECCV 2026)"
    Config = HECConfig
    example = {"heads": 5, "by": "both", "name_heads": 3}
    choices = {"alpha": Choice((0.1, 1.0, 10.0), usual=1.0)}
    at_answer = frozenset({"alpha"})
    _texts: Tensor | None = None  # of the class names, which are read once for all folds

    @property
    def wanted(self) -> tuple[int, ...]:
        counts = {"names": self.config.name_heads, "images": self.config.heads}
        return tuple(count for by, count in counts.items() if self.config.by in (by, "both"))

    @torch.no_grad()
    def prepare(self, training: Training) -> None:
        labels = training.labels("train")
        if self.config.by == "images" and int(labels.bincount().max()) < 2:
            raise AdaptError(f"hec {_NEEDS}")
        features = training.features("train", unit=False)
        vectors = [F.normalize(each, dim=-1) for each in self.each(features)]
        fitted = list[list[Fitted]]()
        if self.config.by != "images":
            if self._texts is None:
                backbone, names = cast("NativeEyes", training.model.backbone), training.model.class_names
                about = [f"You are given an image of a {readable(name)}\n{backbone.question}" for name in names]
                self._texts = backbone.read_texts(about).cpu()
            means = [F.normalize(each, dim=-1) / self.config.name_temperature for each in self.each(self._texts)]
            fitted.append([(each, each.new_zeros(len(each))) for each in means])  # biases are equal: all are as long
        if self.config.by != "names":
            fitted.append([self._of_images(each, labels) for each in vectors])
            if self.config.by == "images" and not any(weight.any() for weight, _ in fitted[-1]):
                raise AdaptError(f"hec {_NEEDS}")
        self.keep(vectors, labels, *fitted)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.softmax(-1)[torch.arange(len(labels)), labels].mean()

    def _of_images(self, vectors: Tensor, labels: Tensor) -> Fitted:
        """Return weights `(n_classes, d)` and biases `(n_classes,)` of one head, from unit-length vectors `(n, d)`.

        Weights are zero if the vectors do not differ within classes.
        """
        means = class_means(vectors, labels, self.bias.shape[1])
        deviations = vectors - means[labels]
        total = float(deviations.square().sum()) / max(1, len(labels) - 1)
        shares = labels.bincount(minlength=len(means)) / len(labels)
        weight = torch.zeros_like(means)
        if total > _FLAT:
            weight = means.shape[1] * against_covariance(means, deviations, self.config.ridge * total)
        bias = shares.to(means).log() - (weight * means).sum(-1) / 2
        return weight / self.config.temperature, bias / self.config.temperature

    def logits(self, step: ImageStep) -> Tensor:
        each = self.of_heads(step.features).softmax(-1).split(self.kept, 1)
        *by_names, last = (probabilities.mean(1) for probabilities in each)
        mixed = by_names[0] + self.setting("alpha") * last if by_names else last
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
