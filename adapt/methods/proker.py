"""ProKeR: kernel ridge regression of what zero-shot classification gets wrong, in closed form without steps.

Paper: Bendou et al., ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models, CVPR 2025.
Reference: BReg-Adapter `f2ecb3d`, a fork with the history of ProKeR's own repository, `trainers/proker.py`, `utils.py`.
Deviations:
* beta and strength are chosen on the validation images of the few-shot sample, or by cross-validation without them; the
  reference uses the full validation split. One geometric grid serves all data sets; the reference has a linear grid for
  each.
* The system is solved in fp64; the reference solves it in fp32.
* Cosines and corrections are multiplied by the logit scale after the regression, which changes no decision: the logits
  can then be calibrated, and blended with others.
* A training class without images is refused; the reference cannot number the classes then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.common.devices import doubled
from adapt.methods.base import Choice, Encoded, Grid, ImageStep, Method, Training, Trial
from adapt.methods.base.training import rows_of
from adapt.methods.base.traits import configure
from adapt.methods.tip_adapter import similarities
from adapt.methods.zero_shot import TemplatesConfig

BETA = Choice(tuple(2.0**k for k in range(-1, 5)), usual=2.0)
STRENGTH = Choice(tuple(0.01 * 2.0**k for k in range(9)), usual=0.08)


class ProKeRConfig(TemplatesConfig):
    views: int = Field(default=10, ge=0)
    """Random views of each training image, all used and held in the adapter; 0 uses the image as it is."""
    beta: float | None = Field(default=None, ge=0)
    """Sharpness of the kernel exp(-beta (1 - cosine)); null lets the data choose (0.5 to 16)."""
    strength: float | None = Field(default=None, gt=0)
    """How far the correction departs from zero-shot (the paper's lambda); null lets the data choose (0.01 to 2.56)."""
    rows: int | None = Field(default=None, ge=1)
    """The number of features in the adapter; training sets it."""


class ProKeR(Method[ImageStep], Grid):
    """Kernel ridge regression beside zero-shot. `ProKeR(views, beta, strength)` stores `x` and `alpha`.

    `x` `(s, e)` are the features of all views of all training images, and `alpha` `(s, n_classes)` are their weights:
    39 MB for 100 classes of 16 images in 10 views on a CLIP ViT-B/16, and 4 MB without views. The fit holds two
    matrices of `s * s` numbers in fp64.
    """

    name = "proker"
    title = "ProKeR (Bendou et al., CVPR 2025)"
    Config = ProKeRConfig
    serves = ("dual encoder", "vision encoder")
    example = {"views": 0, "rows": 6}
    needs_every_class = True
    per_class = True
    takes_steps = False
    choices = {"beta": BETA, "strength": STRENGTH}
    x: Tensor
    alpha: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        rows, device = self.config.rows or 0, backbone.device
        self.register_buffer("x", torch.zeros(rows, backbone.embed_dim, device=device))
        self.register_buffer("alpha", torch.zeros(rows, len(class_names), device=device))

    def prepare(self, training: Training) -> None:
        self.alpha = self._regression(training).weights(self.setting("strength")).to(self.x)
        self.config = self.config.model_copy(update={"rows": len(self.x)})

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield the trials of `Grid.trials`, with one decomposition of the kernel matrix for all strengths."""
        betas, strengths = (
            choices[name].values if name in choices else (self.setting(name),) for name in ("beta", "strength")
        )
        training.prepare()  # which also sets what stands for class names on a backbone that reads none
        step = ImageStep(training.classifier, Encoded(training.features("val")))
        for beta in betas:
            configure(self, {"beta": beta})
            regression = self._regression(training)
            for strength in strengths:
                self.alpha = regression.weights(strength).to(self.x)
                with torch.no_grad():
                    yield {"beta": beta, "strength": strength}, self.logits(step)

    def _regression(self, training: Training) -> _Regression:
        """Read the training features into `x`, and return the regression of what zero-shot leaves of their labels."""
        self.x, labels = rows_of(training, self.config.views, self.x.device)
        with torch.no_grad():
            texts = doubled(training.classifier.class_features())
        rows = doubled(self.x)
        remainder = F.one_hot(labels, len(texts)).to(rows) - rows @ texts.T
        values, vectors = torch.linalg.eigh(self._kernel(rows, rows))
        return _Regression(values, vectors, vectors.T @ remainder)

    def _kernel(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return the similarities `(b, s)` of unit-length features `(b, e)` and `rows` `(s, e)`."""
        return similarities(features, rows, self.setting("beta"))

    def logits(self, step: ImageStep) -> Tensor:
        kernel = self._kernel(step.features.to(self.x.dtype), self.x)
        return step.cosine_logits(step.class_features) + step.scale * (kernel @ self.alpha)


class _Regression(NamedTuple):
    """Kernel ridge regression for every strength, by the eigenvalues and eigenvectors of the kernel matrix."""

    values: Tensor  # (s,)
    vectors: Tensor  # (s, s)
    targets: Tensor  # (s, n_classes), in the basis of the eigenvectors

    def weights(self, strength: float) -> Tensor:
        """Return the weights `(s, n_classes)` of the rows, `(K / strength + I)^-1` times the targets."""
        return self.vectors @ (self.targets / (self.values / strength + 1)[:, None])
