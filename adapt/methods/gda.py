"""GDA: Gaussian discriminant analysis of image features, added to the zero-shot logits, in closed form without steps.

Paper: Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024.
Reference: ICLR24 `560fe21`, `main_few_shots.py`, `main_base2new.py`, `utils.py`.
Deviations:
* alpha is chosen on the validation images of the few-shot sample; the reference uses the full validation split, and
  on ImageNet the test images. Without validation images it is chosen by cross-validation.
* alpha may also be 1,000; the reference stops at 100.
* Covariances are inverted in fp64, by Cholesky if they are shrunk; the reference inverts by singular values in fp32.
* The views are the paper's random crops of scale 0.08 to 1; the reference's have scale 0.5 to 1.
* Images without spread about the mean of their class, such as one image without views, are refused; the reference then
  answers as zero-shot does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.common.devices import doubled
from adapt.common.errors import AdaptError
from adapt.methods.base import Choice, Grid, ImageStep, Method, Training
from adapt.methods.base.plain_classifier import against_covariance, class_means
from adapt.methods.base.training import rows_of
from adapt.methods.zero_shot import TemplatesConfig

ALPHAS = tuple(10.0**k for k in range(-4, 4))
TEXT_COPIES = 16  # weight of a new class's text feature, in neighbours


class GDAConfig(TemplatesConfig):
    views: int = Field(default=10, ge=0)
    """Random views of each training image, all used; 0 uses the image as it is."""
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the Gaussian classifier beside the zero-shot logits; null lets the data choose (0.0001 to 1,000)."""
    shrink: bool = True
    """Whether the shared covariance is shrunk towards a multiple of the identity; otherwise the mean of the classes'
    covariances is used as it is, as published for base-to-new."""
    new_classes: bool = False
    """Whether the adapter serves other class names, for which it holds the training features."""
    neighbours: int = Field(default=64, ge=1)
    """The number of training features nearest to a new class's text that model the class."""
    rows: int | None = Field(default=None, ge=1)
    """The number of features in the adapter; training sets it."""


class GDA(Method[ImageStep], Grid):
    """A Gaussian classifier. `GDA(views, alpha)` stores `weight` `(n_classes, e)` and `bias` `(n_classes,)`.

    With `new_classes`, the training `features` are also stored, for classes that are not in the training data. The
    Gaussian logits are added to the zero-shot logits.
    """

    name = "gda"
    title = "GDA (Wang et al., ICLR 2024)"
    Config = GDAConfig
    serves = ("dual encoder", "vision encoder")
    example = {"views": 0}
    needs_every_class = True
    takes_steps = False
    choices = {"alpha": Choice(ALPHAS, usual=10.0)}
    at_answer = frozenset({"alpha"})
    logit_scale = 100.0  # written out in the reference
    weight: Tensor
    bias: Tensor
    features: Tensor

    @property
    def per_class(self) -> bool:
        return not self.config.new_classes

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._names, size = tuple(class_names), backbone.embed_dim
        self.register_buffer("weight", torch.zeros(len(class_names), size, device=backbone.device))
        self.register_buffer("bias", torch.zeros(len(class_names), device=backbone.device))
        if self.config.new_classes:
            self.register_buffer("features", torch.zeros(self.config.rows or 0, size, device=backbone.device))

    def prepare(self, training: Training) -> None:
        rows, labels = rows_of(training, self.config.views, self.weight.device)
        self.fit(rows, labels)
        if self.config.new_classes:
            self.register_buffer("features", rows)
            self.config = self.config.model_copy(update={"rows": len(rows)})

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Fit the Gaussian classifier to unit-length features `(n, e)` with labels `(n,)`."""
        classes, features = len(self.weight), doubled(features)
        labels = labels.to(features.device)
        means = class_means(features, labels, classes)
        centred = features - means[labels]
        if not centred.any():
            raise AdaptError(
                "gda needs two or more different images of a class, or views of them, and there are none: set "
                "method.views, or use more shots"
            )
        if self.config.shrink:
            total = float(centred.square().sum()) / (len(centred) - 1)
            weight = features.shape[1] * against_covariance(means, centred, total)
        else:
            own = [centred[labels == label] for label in range(classes)]
            weight = means @ torch.linalg.pinv(torch.stack([each.T.cov() for each in own]).mean(0), hermitian=True)
        bias = biases(weight, means)
        self.weight, self.bias = weight.to(self.weight), bias.to(self.bias)

    def logits(self, step: ImageStep) -> Tensor:
        weight, bias = self.weight, self.bias
        if step.model.class_names != self._names:
            weight, bias = self.of_texts(step.class_features)
        gaussian = step.features.to(weight.dtype) @ weight.T + bias
        return step.cosine_logits(step.class_features) + self.setting("alpha") * gaussian

    def of_texts(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight `(n, e)` and bias `(n,)` for new classes that have only unit-length text features `(n, e)`."""
        k = self.config.neighbours
        if len(self.features) < k:
            raise AdaptError(
                f"gda models a new class by its {k} nearest training features, but only {len(self.features)} exist: "
                "reduce method.neighbours, or increase method.views"
            )
        texts, features = doubled(texts), doubled(self.features)
        near = features[(texts @ features.T).topk(k).indices]  # (n, k, e)
        means = (near.sum(1) + TEXT_COPIES * texts) / (k + TEXT_COPIES)
        around = near - texts[:, None]
        covariances = around.transpose(1, 2) @ around / (k - 1)
        weight = means @ torch.stack([shrunk_precision(each, k) for each in covariances]).mean(0)
        return weight.to(self.weight), biases(weight, means).to(self.weight)


def shrunk_precision(covariance: Tensor, count: int) -> Tensor:
    """Return `e ((n - 1) S + tr(S) I)^-1`, an empirical Bayes estimate of the inverse of the covariance S of n rows."""
    size = len(covariance)
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    shrunk = (count - 1) * covariance + covariance.trace() * identity
    return size * torch.cholesky_inverse(torch.linalg.cholesky(shrunk))


def biases(weight: Tensor, means: Tensor) -> Tensor:
    """Return the biases `(n,)` of the classifier for equally likely Gaussians with these means and weights `(n, e)`."""
    return -torch.tensor(float(len(means))).log() - (weight * means).sum(-1) / 2
