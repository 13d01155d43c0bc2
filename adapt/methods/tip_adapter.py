"""Tip-Adapter: a look-up table of the training images, whose labels add to the logits of similar images.

Paper: Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022 (Tip-Adapter,
and with trained keys Tip-Adapter-F).
Reference: Tip-Adapter `d0e2d6f`, `main.py`, `utils.py`.
Deviations:
* alpha and beta are chosen on the validation images of the few-shot sample; the reference uses the full validation
  split, and on ImageNet the test images. Without validation images they are chosen by cross-validation, before keys
  are trained.
* Trained keys are those after the last step; the reference keeps those of the best epoch on the test images.
* The views of a key are the paper's random crops of scale 0.08 to 1; the reference's have scale 0.5 to 1.
* The adapter holds keys in fp32, and labels instead of one-hot values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.methods.base import Choice, Encoded, Grid, ImageStep, Method, Training, Trial
from adapt.methods.base.traits import KeepsLabels
from adapt.methods.zero_shot import TemplatesConfig

LEAST = 0.1  # the first alpha and beta of the search
KEPT = 2**28  # the most similarities that the search stores; beyond it, they are recomputed for each beta
AT_ONCE = 2**24  # similarities per chunk of the search


class TipAdapterConfig(TemplatesConfig):
    train: bool = False
    """Whether the keys, once computed from the images, are also trained (Tip-Adapter-F)."""
    views: int = Field(default=10, ge=0)
    """Random views of an image whose features are averaged into its key; 0 uses the image as it is."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the table's logits; if alpha is searched, only the initial weight of training."""
    beta: float = Field(default=1.0, gt=0)
    """Sharpness of the similarity."""
    search_alpha: float | None = Field(default=3.0, gt=LEAST)
    """The upper end of the search for alpha, in 20 steps; null keeps alpha and beta."""
    search_beta: float = Field(default=7.0, gt=LEAST)
    """The upper end of the search for beta, in 200 steps."""
    keys: int | None = Field(default=None, ge=1)
    """The number of images in the table; training sets it."""


class TipAdapter(Method[ImageStep], Grid, KeepsLabels):
    """A key-value cache of training images, with `labels` `(n,)` and `keys` `(n, e)`, trained if `train` is set."""

    name = "tip_adapter"
    title = "Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022)"
    Config = TipAdapterConfig
    serves = ("dual encoder", "vision encoder")
    example = {"views": 0, "keys": 6}
    needs_every_class = True
    per_class = True
    begins_anew = True
    logit_scale = 100.0  # written out in the reference
    keys: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._classes = len(class_names)
        count = self.config.keys or 0
        keys = {"keys": torch.zeros(count, backbone.embed_dim)}
        self.hold(keys, torch.arange(count) % self._classes, backbone.device, self.config.train)

    def prepare(self, training: Training) -> None:
        features = training.features("train", views=self.config.views, unit=False)
        if self.config.views:
            features = features.mean(1)  # of (n, views, e), before normalisation
        keys = {"keys": F.normalize(features, dim=-1)}
        self.hold(keys, training.labels("train"), self.labels.device, self.config.train)
        self.config = self.config.model_copy(update={"keys": len(features)})

    def grid(self, training: Training) -> dict[str, Choice]:
        if self.config.search_alpha is None:
            return {}
        return {
            "beta": Choice(steps_to(self.config.search_beta, 200), usual=self.config.beta, open_ended=False),
            "alpha": Choice(steps_to(self.config.search_alpha, 20), usual=self.config.alpha, open_ended=False),
        }

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield the trials of `Grid.trials`, with the similarities of images and keys summed once for each beta."""
        if not learned:
            training.prepare()
        features = training.features("val").to(self.keys.device)
        step = ImageStep(training.classifier, Encoded(features))
        with torch.no_grad():
            zero_shot = step.cosine_logits(step.class_features)
            table = _Table(self.keys, self.labels, self._classes, features)
            for beta in choices["beta"].values:
                votes = table.votes(beta)
                for alpha in choices["alpha"].values:
                    yield {"beta": beta, "alpha": alpha}, torch.add(zero_shot, votes, alpha=alpha)

    def logits(self, step: ImageStep) -> Tensor:
        features = step.features.to(self.keys.dtype)
        votes = table_logits(features, self.keys, self.labels, self._classes, self.config.beta)
        return step.cosine_logits(step.class_features) + self.config.alpha * votes


class _Table:
    """A key-value cache of labelled keys `(n, e)` whose logits for features `(b, e)` are computed for several betas.

    Keys are sorted by class, and classes by number of keys, so that a sum within classes is a sum over an axis.
    """

    def __init__(self, keys: Tensor, labels: Tensor, classes: int, features: Tensor) -> None:
        counts = labels.bincount(minlength=classes)
        order = counts.argsort(stable=True)
        self._place = order.argsort()  # the place of each class among the sums
        self._keys = keys[self._place[labels].argsort(stable=True)]
        self._groups = [(int(count), int((counts == count).sum())) for count in counts.unique()]  # keys, of how many
        self._images = features.split(max(1, AT_ONCE // max(1, len(keys))))
        fits = len(features) * len(keys) <= KEPT
        self._nearness = [self._nearness_of(images) for images in self._images] if fits else None

    def _nearness_of(self, features: Tensor) -> Tensor:
        """Return the cosine similarities `(n, b)` of keys and features, minus 1."""
        return self._keys @ features.T - 1

    def votes(self, beta: float) -> Tensor:
        """Return the similarities of each image to the keys, summed over the keys of each class, `(b, n_classes)`."""
        parts = map(self._nearness_of, self._images) if self._nearness is None else self._nearness
        return torch.cat([self._by_class((beta * part).exp_()) for part in parts], dim=1).T.contiguous()

    def _by_class(self, similar: Tensor) -> Tensor:
        sizes = [keys * classes for keys, classes in self._groups]
        sums = [
            part.reshape(classes, keys, -1).sum(1) if keys else part.new_zeros(classes, part.shape[1])
            for part, (keys, classes) in zip(similar.split(sizes), self._groups, strict=True)
        ]
        return torch.cat(sums)[self._place]


def steps_to(most: float, steps: int) -> list[float]:
    """Return the search grid of the reference code: `steps` evenly spaced values from 0.1 to just below `most`."""
    return [LEAST + i * (most - LEAST) / steps for i in range(steps)]


def similarities(features: Tensor, keys: Tensor, beta: float) -> Tensor:
    """Return exp(-beta (1 - cosine)) `(b, n)` for unit-length features `(b, e)` and keys `(n, e)`."""
    return (beta * (features @ keys.T - 1)).exp()


def table_logits(features: Tensor, keys: Tensor, labels: Tensor, classes: int, beta: float) -> Tensor:
    """Return the similarities of features `(b, e)` to labelled keys `(n, e)`, summed by class, `(b, n_classes)`."""
    similar = similarities(features, keys, beta)
    return similar.new_zeros(similar.shape[0], classes).index_add(1, labels, similar)
