"""Gaussian discriminant analysis of image features beside the zero-shot logits: a closed form, no step.

Paper: Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024.
Reference: ICLR24 `560fe21`, `main_few_shots.py`, `main_base2new.py`, `utils.py`.
Deviations:
* alpha is chosen on the validation images of the few-shot sample; the reference takes the whole validation split, and
  on ImageNet the test images. Without validation images it is chosen by cross-validation.
* alpha may be 1,000 too; the reference ends at 100.
* Covariances are inverted in fp64, by Cholesky where they are shrunk; the reference inverts by singular values in fp32.
* The views are the papers' random crops of scale 0.08 to 1 here, of scale 0.5 to 1 there.
* Where images have no spread about their class's mean, as one image without views has not, it is refused; the
  reference's answers are those of zero-shot then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.devices import doubled
from adapt.errors import AdaptError
from adapt.methods.base import Choice, Grid, ImageStep, Method, MethodConfig, Training
from adapt.methods.zero_shot import Templates

ALPHAS = tuple(10.0**k for k in range(-4, 4))
USUAL = 10.0
TEXT_COPIES = 16  # of a new class's text feature beside its neighbours


class GDAConfig(MethodConfig):
    views: int = Field(default=10, ge=0)
    """Random views of each training image, all of which count; 0 takes the image as it is."""
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the Gaussian classifier beside the zero-shot logits; null leaves it to the data, from 0.0001 to
    1,000."""
    shrink: bool = True
    """Whether one covariance of all is shrunk towards a multiple of the identity; else the mean of the classes' own is
    taken as it is, as published for base to new."""
    new_classes: bool = False
    """Whether other class names are served: the training features are kept in the adapter then."""
    neighbours: int = Field(default=64, ge=1)
    """Training features around the text of a new class that it is made of."""
    template: Templates = "a photo of a {}."
    """One template, or several whose features are averaged."""
    rows: int | None = Field(default=None, ge=1)
    """How many features the adapter keeps; a trained one has it."""


class GDA(Method[ImageStep], Grid):
    """`GDA(views, alpha)` keeps `weight` `(n_classes, e)` and `bias` `(n_classes,)`, and for new classes `features`."""

    name = "gda"
    title = "GDA (Wang et al., ICLR 2024)"
    Config = GDAConfig
    example = {"views": 0}
    needs_every_class = True
    takes_steps = False
    at_answer = frozenset({"alpha"})
    logit_scale = 100.0  # written out in the reference
    weight: Tensor
    bias: Tensor
    features: Tensor

    @property
    def per_class(self) -> bool:
        return not self.config.new_classes

    def grid(self, training: Training) -> dict[str, Choice]:
        return {"alpha": Choice(ALPHAS, usual=USUAL)} if self.config.alpha is None else {}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._names, size = tuple(class_names), backbone.embed_dim
        self.register_buffer("weight", torch.zeros(len(class_names), size, device=backbone.device))
        self.register_buffer("bias", torch.zeros(len(class_names), device=backbone.device))
        if self.config.new_classes:
            self.register_buffer("features", torch.zeros(self.config.rows or 0, size, device=backbone.device))

    def prepare(self, training: Training) -> None:
        views, device = self.config.views, self.weight.device
        features, labels = training.features("train", views=views), training.labels("train")
        rows = features.flatten(0, -2).to(device)
        self.fit(rows, labels.repeat_interleave(max(views, 1)).to(device))
        if self.config.new_classes:
            self.register_buffer("features", rows)
            self.config = self.config.model_copy(update={"rows": len(rows)})

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """The Gaussian classifier of unit-length features `(n, e)` with labels `(n,)`."""
        classes, features = len(self.weight), doubled(features)
        labels = labels.to(features.device)
        counts = labels.bincount(minlength=classes)[:, None]
        means = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features) / counts
        centred = features - means[labels]
        if not centred.any():
            raise AdaptError(
                "gda needs images that differ within a class, and each class has one feature: set method.views, or "
                "give more shots"
            )
        if self.config.shrink:
            precision = shrunk_precision(centred.T.cov(), len(centred))
        else:
            own = [centred[labels == label] for label in range(classes)]
            precision = torch.linalg.pinv(torch.stack([each.T.cov() for each in own]).mean(0), hermitian=True)
        weight, bias = classifier(means, precision)
        self.weight, self.bias = weight.to(self.weight), bias.to(self.bias)

    def logits(self, step: ImageStep) -> Tensor:
        alpha = USUAL if self.config.alpha is None else self.config.alpha
        return step.cosine_logits(step.class_features) + alpha * self._said(step)

    def _said(self, step: ImageStep) -> Tensor:
        """What the Gaussian classifier says of images `(b, n)`."""
        weight, bias = self.weight, self.bias
        if step.model.class_names != self._names:
            weight, bias = self.of_texts(step.class_features)
        return step.features.to(weight.dtype) @ weight.T + bias

    def of_texts(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier of new classes, by their unit-length text features `(n, e)`: weight `(n, e)`, bias `(n,)`."""
        k = self.config.neighbours
        if len(self.features) < k:
            raise AdaptError(
                f"gda makes a new class of its {k} nearest training features, and there are {len(self.features)}: set "
                "method.neighbours lower, or method.views higher"
            )
        texts, features = doubled(texts), doubled(self.features)
        near = features[(texts @ features.T).topk(k).indices]  # (n, k, e)
        means = (near.sum(1) + TEXT_COPIES * texts) / (k + TEXT_COPIES)
        around = near - texts[:, None]
        covariances = around.transpose(1, 2) @ around / (k - 1)
        precision = torch.stack([shrunk_precision(each, k) for each in covariances]).mean(0)
        weight, bias = classifier(means, precision)
        return weight.to(self.weight), bias.to(self.weight)


def shrunk_precision(covariance: Tensor, count: int) -> Tensor:
    """`e ((n - 1) S + tr(S) I)^-1` of a covariance `(e, e)` of n rows: an empirical Bayes estimate of its inverse."""
    size = len(covariance)
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    shrunk = (count - 1) * covariance + covariance.trace() * identity
    return size * torch.cholesky_inverse(torch.linalg.cholesky(shrunk))


def classifier(means: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `(n, e)` and bias `(n,)` of classes that are as likely, with means `(n, e)` and one precision `(e, e)`."""
    weight = means @ precision
    return weight, -torch.tensor(float(len(means))).log() - (weight * means).sum(-1) / 2
