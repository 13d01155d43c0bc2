"""LP++: a linear probe blended with text, with class weights and a text multiplier per class, at closed-form rates.

Paper: Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, CVPR 2024.
Reference: FewShot-CLIP-Strong-Baseline `f81054f`, `methods/linear_probe_p2.py`, `methods/utils.py`.
Deviations:
* As in the reference and unlike the paper, weights change every epoch, and text multipliers every tenth epoch, by the
  sum of all their gradients so far.
* The epoch is chosen on the validation images of the few-shot sample; without them, the last epoch is used.
* Classes may have different numbers of images: a class's weights start as the sum of its own features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.common.devices import doubled
from adapt.methods.base import Encoded, ImageStep, Method, Training
from adapt.methods.base.plain_classifier import class_means
from adapt.methods.base.training import rows_of
from adapt.methods.zero_shot import TemplatesConfig

TEXT = 250.0  # times the mean cosine of images with their own class: the initial multipliers
EVERY = 10  # epochs between two updates of the multipliers
MOMENTUM = 0.9


class LPPlusPlusConfig(TemplatesConfig):
    views: int = Field(default=1, ge=0)
    """Random views of each training image, all used; 0 uses the image as it is."""
    epochs: int = Field(default=300, ge=1)
    """The number of steps, each over all images."""


class LPPlusPlus(Method[ImageStep]):
    """A linear probe blended with text. `LPPlusPlus(views, epochs)` stores `weight`, `bias` and `alpha`.

    The shapes are `(n, e)`, `(n,)` and `(1, n)` for n classes. `alpha` multiplies the text cosines.
    """

    name = "lp_plus_plus"
    title = "LP++ (Huang et al., CVPR 2024)"
    Config = LPPlusPlusConfig
    example = {"views": 0, "epochs": 20}
    needs_every_class = True
    per_class = True
    begins_anew = True
    takes_steps = False
    weight: Tensor
    bias: Tensor
    alpha: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        classes, size, device = len(class_names), backbone.embed_dim, backbone.device
        self.register_buffer("weight", torch.zeros(classes, size, device=device))
        self.register_buffer("bias", torch.empty(classes).uniform_(-(size**-0.5), size**-0.5).to(device))
        self.register_buffer("alpha", torch.zeros(1, classes, device=device))

    def logits(self, step: ImageStep) -> Tensor:
        features, texts = step.features.to(self.weight.dtype), step.class_features.to(self.weight.dtype)
        return self._blended(features, features @ texts.T)

    def _blended(self, features: Tensor, cosines: Tensor) -> Tensor:
        """Return the probe's logits `(b, n)` for `features` `(b, e)`, plus text `cosines` `(b, n)` times `alpha`."""
        return features @ self.weight.T + self.bias + self.alpha * cosines

    def prepare(self, training: Training) -> None:
        device = self.weight.device
        rows, labels = rows_of(training, self.config.views, device)
        with torch.no_grad():
            texts = training.classifier.class_features()
            self.start(rows, labels, rows @ texts.T)
            val = (training.features("val").to(device), training.labels("val")) if training.items("val") else None
            training.note(solver=self._fit(training, rows, labels, texts, val))

    def start(self, features: Tensor, labels: Tensor, cosines: Tensor) -> None:
        """Initialise `weight` with sums of features, and `alpha` from the mean cosine of images with their class."""
        classes = len(self.weight)
        self.weight = torch.zeros_like(self.weight).index_add(0, labels, features)
        means = class_means(cosines.gather(1, labels[:, None]), labels, classes)
        self.alpha = torch.full_like(self.alpha, float(TEXT * means.mean()))

    def _fit(
        self, training: Training, features: Tensor, labels: Tensor, texts: Tensor, val: tuple[Tensor, Tensor] | None
    ) -> dict[str, float]:
        """Train for all epochs, restore the last epoch with the best accuracy on `val` if given, and return metrics."""
        best: tuple[float, int, dict[str, Tensor]] = (-1.0, self.config.epochs, {})
        for epoch in self.steps(features, labels, features @ texts.T):
            if val is None:
                continue
            step = ImageStep(training.classifier, Encoded(val[0]))
            accuracy = float((step.logits.argmax(-1).cpu() == val[1]).float().mean())
            if accuracy >= best[0]:
                best = accuracy, epoch, {name: tensor.clone() for name, tensor in self.state_dict().items()}
        if val is None:
            return {"epoch": self.config.epochs}
        self.load_state_dict(best[2])
        return {"epoch": best[1], "val_accuracy": best[0]}

    def steps(self, features: Tensor, labels: Tensor, cosines: Tensor) -> Iterator[int]:
        """Train for all epochs of one step each, and yield the number of each finished epoch, counted from 1."""
        lr_weight, lr_alpha = rates(features, cosines)
        target = F.one_hot(labels, len(self.weight)).to(features.dtype)
        momenta = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        alpha_gradient = torch.zeros_like(self.alpha)
        for epoch in range(1, self.config.epochs + 1):
            wrong = (self._blended(features, cosines).softmax(-1) - target) / len(labels)
            gradients = wrong.T @ features, wrong.sum(0)
            alpha_gradient += (wrong * cosines).sum(0)
            momenta = [MOMENTUM * before + gradient for before, gradient in zip(momenta, gradients)]
            self.weight, self.bias = self.weight - lr_weight * momenta[0], self.bias - lr_weight * momenta[1]
            if epoch % EVERY == 0:
                self.alpha = self.alpha - lr_alpha * alpha_gradient
            yield epoch


def rates(features: Tensor, cosines: Tensor) -> tuple[float, float]:
    """Return the learning rates of `weight` and `alpha`, computed from bounds on the curvature of the loss."""
    count = len(features)
    largest = torch.linalg.eigvalsh(doubled(features).T @ doubled(features))[-1]
    return float(4 * count / largest), float(count / (4 * cosines.square().sum(0).max()))
