"""Kernel ridge regression: a number by the similarities of an image to the training images.

Textbook: Murphy, Machine Learning: A Probabilistic Perspective, 2012, section 14.4.3.
Reference: scikit-learn's `KernelRidge` with the kernel `rbf`.
Deviations: features have unit length, and targets are standardised, so that their mean is predicted far from all
training images, where scikit-learn's predicts 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.common.errors import AdaptError
from adapt.methods.base import Choice, MethodConfig, Training
from adapt.methods.base.plain_classifier import Regressor
from adapt.methods.tip_adapter import similarities

MOST = 5000  # training images


class KernelRidgeConfig(MethodConfig):
    alpha: float | None = Field(default=None, gt=0)
    """Regularisation, as scikit-learn's alpha; null lets the data choose, from 0.0001 to 10."""
    gamma: float | None = Field(default=None, gt=0)
    """Sharpness of the kernel, exp(-gamma times the squared distance); null lets the data choose, from 0.25 to 64."""
    rows: int | None = Field(default=None, ge=1)
    """The number of training images in the adapter; training sets it."""


class KernelRidge(Regressor):
    """Kernel ridge regression. `KernelRidge(alpha, gamma)` stores training `features` `(s, e)` and `weights` `(s,)`.

    Raises AdaptError for more than 5,000 training images, as each of many fits solves for `s * s` similarities.
    """

    name = "kernel_ridge"
    title = "Kernel ridge regression"
    Config = KernelRidgeConfig
    example = {"rows": 6}
    choices = {
        "gamma": Choice((0.25, 1.0, 4.0, 16.0, 64.0), usual=1.0),
        "alpha": Choice((0.0001, 0.001, 0.01, 0.1, 1.0, 10.0), usual=0.1),
    }
    features: Tensor
    weights: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        rows, device = self.config.rows or 0, backbone.device
        self.register_buffer("features", torch.zeros(rows, backbone.embed_dim, device=device))
        self.register_buffer("weights", torch.zeros(rows, device=device))

    def prepare(self, training: Training) -> None:
        if (count := len(training.items("train"))) > MOST:
            raise AdaptError(f"{self.name} fits at most {MOST:,} training images, and there are {count:,}: use ridge")
        super().prepare(training)

    def estimator(self) -> Any:
        from sklearn.kernel_ridge import KernelRidge as Estimator

        return Estimator(alpha=self.setting("alpha"), kernel="rbf", gamma=self.setting("gamma"))

    def keep(self, fitted: Any, features: Tensor) -> None:
        self.features = features.to(self.features)
        self.weights = torch.from_numpy(fitted.dual_coef_).to(self.weights)
        self.config = self.config.model_copy(update={"rows": len(features)})

    def predicted(self, features: Tensor) -> Tensor:
        similar = similarities(features.to(self.features.dtype), self.features, 2 * self.setting("gamma"))
        return similar @ self.weights
