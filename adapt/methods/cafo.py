"""CaFo: two look-up tables of the training images, of a CLIP and a DINO, that zero-shot answers weigh for each image.

Paper: Zhang et al., Prompt, Generate, then Cache: Cascade of Foundation Models makes Strong Few-shot Learners,
CVPR 2023 (CaFo).
Reference: OpenGVLab/CaFo `a805a2a`, `main.py`, `utils.py` (`logits_fuse` with `normalize: mean`).
Deviations:
* Descriptions by GPT-3 and images by DALL-E, which the paper adds to texts and keys, are left out.
* alpha and beta are chosen on validation images, or by cross-validation, as in `tip_adapter`; the reference reports
  the better of two accuracies on test images, and takes the epoch from them too.
* Keys are means of unit-length features of views; the reference's are means of raw ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.backbones.joined import JoinedDualEncoder
from adapt.common.errors import AdaptError
from adapt.methods.base import Choice, Grid, ImageStep, Method, Training
from adapt.methods.base.traits import KeepsLabels
from adapt.methods.tip_adapter import table_logits
from adapt.methods.zero_shot import TemplatesConfig

ALPHAS = tuple(10.0 ** (k / 4) for k in range(-4, 7))  # 0.1 to 32
BETAS = tuple(2.0 ** (k / 2) for k in range(-2, 9))  # 0.5 to 16
LEAST = 1e-12  # added to the variance of a row, which may be constant


class CaFoConfig(TemplatesConfig):
    train: bool = False
    """Whether the keys, once computed from the images, are also trained."""
    views: int = Field(default=10, ge=0)
    """Random views of an image whose features are averaged into its keys; 0 uses the image as it is."""
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the tables beside the zero-shot logits; null lets the data choose (0.1 to 32)."""
    beta: float | None = Field(default=None, gt=0)
    """Sharpness of the similarity; null lets the data choose (0.5 to 16)."""
    keys: int | None = Field(default=None, ge=1)
    """The number of images in the tables; training sets it."""


class CaFo(Method[ImageStep], Grid, KeepsLabels):
    """Two key-value caches of training images, with `labels` `(n,)` and `keys` of both encoders, `(n, e1)`, `(n, e2)`.

    The backbone must be a dual encoder joined with a second encoder, such as `mini-clip&hf:facebook/dinov2-small`.
    """

    name = "cafo"
    title = "CaFo, the cascade of CLIP and DINO (Zhang et al., CVPR 2023)"
    Config = CaFoConfig
    example = {"views": 0, "keys": 6}
    needs_every_class = True
    per_class = True
    begins_anew = True
    choices = {"alpha": Choice(ALPHAS, usual=1.0), "beta": Choice(BETAS, usual=1.0)}
    at_answer = frozenset({"alpha", "beta"})
    first: Tensor
    second: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        if not isinstance(backbone, JoinedDualEncoder):
            raise AdaptError(
                f"cafo needs a CLIP joined with a second encoder, but {backbone.describe()} is one model: name both, "
                "as in 'mini-clip&hf:facebook/dinov2-small'"
            )
        if len(class_names) < 2:
            raise AdaptError(f"cafo compares logits of classes, but has {len(class_names)}: give at least two classes")
        self._classes, count = len(class_names), self.config.keys or 0
        self._widths = backbone.both.widths
        self._hold(torch.zeros(count, sum(self._widths)), torch.arange(count) % self._classes, backbone.device)

    def _hold(self, keys: Tensor, labels: Tensor, device: torch.device) -> None:
        parts = dict(zip(("first", "second"), self.parts_of(keys.to(device)), strict=True))
        self.hold(parts, labels, device, self.config.train)

    def prepare(self, training: Training) -> None:
        features = training.features("train", views=self.config.views, unit=False)
        keys = features.mean(1) if self.config.views else features
        self._hold(keys, training.labels("train"), self.labels.device)
        self.config = self.config.model_copy(update={"keys": len(keys)})

    def parts_of(self, features: Tensor) -> Iterator[Tensor]:
        """Return an iterator over the unit-length parts `(n, e1)` and `(n, e2)` of joined features `(n, e1 + e2)`."""
        return (F.normalize(part, dim=-1) for part in features.split(self._widths, dim=-1))

    def logits(self, step: ImageStep) -> Tensor:
        zero_shot = step.cosine_logits(step.class_features)
        parts = self.parts_of(step.features.to(self.first.dtype))
        caches = [
            table_logits(part, keys, self.labels, self._classes, self.setting("beta"))
            for part, keys in zip(parts, (self.first, self.second), strict=True)
        ]
        return zero_shot + self.setting("alpha") * fused(zero_shot, caches)


def fused(zero_shot: Tensor, caches: Sequence[Tensor]) -> Tensor:
    """Return the mean `(b, n)` of standardised logits, each weighted, image by image, by its agreement with zero-shot.

    The weights are the softmax over `caches` of the inner products of their standardised rows with those of
    `zero_shot` `(b, n)`.
    """
    standardised = _standardised(zero_shot)
    rows = torch.stack([_standardised(each) for each in caches])  # (caches, b, n)
    weights = (rows * standardised).sum(-1, keepdim=True).softmax(0)
    return (weights * rows).sum(0)


def _standardised(logits: Tensor) -> Tensor:
    """Return logits `(b, n)` with mean 0 and standard deviation 1 (divisor n - 1) in each row, or with zeros."""
    deviation = (logits.var(-1, keepdim=True) + LEAST).sqrt()
    return (logits - logits.mean(-1, keepdim=True)) / deviation
