"""Ridge regression: a number that is linear in the image features.

Paper: Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, Technometrics 1970.
Reference: scikit-learn's `Ridge`.
Deviations: features have unit length. alpha is chosen by the absolute error of images that are held out, where
scikit-learn's `RidgeCV` takes the squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.methods.base import Choice, MethodConfig
from adapt.methods.base.plain_classifier import Regressor


class RidgeConfig(MethodConfig):
    alpha: float | None = Field(default=None, gt=0)
    """Regularisation, as scikit-learn's alpha; null lets the data choose, from 0.0001 to 1,000."""


class Ridge(Regressor):
    """Ridge regression with an intercept. `Ridge(alpha)` stores `weight` `(e,)` and `bias` `()`."""

    name = "ridge"
    title = "Ridge regression (Hoerl and Kennard, Technometrics 1970)"
    Config = RidgeConfig
    choices = {"alpha": Choice(tuple(10.0 ** (k / 2) for k in range(-8, 7)), usual=0.1)}

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        self.weight = nn.Parameter(torch.zeros(backbone.embed_dim, device=backbone.device))
        self.bias = nn.Parameter(torch.zeros((), device=backbone.device))

    def estimator(self) -> Any:
        from sklearn.linear_model import Ridge as Estimator

        return Estimator(self.setting("alpha"))

    def keep(self, fitted: Any, features: Tensor) -> None:
        self.weight.copy_(torch.from_numpy(fitted.coef_))
        self.bias.fill_(fitted.intercept_)

    def predicted(self, features: Tensor) -> Tensor:
        return features.to(self.weight.dtype) @ self.weight + self.bias
