"""Plain classifiers of image features, fitted without gradient steps: those that a practitioner tries first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.common.devices import doubled
from adapt.data.split import kept_together
from adapt.methods.base import Choice, Grid, ImageStep, Method, Training
from adapt.methods.base.step import Encoded
from adapt.methods.base.traits import Grades, OwnClassifier
from adapt.methods.zero_shot import TemplatesConfig
from adapt.prompts import Prompt

WORDS = (0.0, *(10.0 ** (k / 2) for k in range(-4, 5)))  # 0, and 0.01 to 100
ABOVE = 2.0  # standard errors above chance from which class names count as informative


class PlainClassifierConfig(TemplatesConfig):
    words: float | None = Field(default=0.0, ge=0)
    """Weight of the zero-shot logits beside the classifier's own; 0 leaves them out, null lets the data choose."""


class PlainClassifier(Method[ImageStep], Grid, OwnClassifier):
    """The base class of plain classifiers on image features, whose logits are `scores + words * zero_shot_logits`."""

    Config = PlainClassifierConfig
    serves: tuple[str, ...] = ("dual encoder", "vision encoder")
    needs_every_class = True
    per_class = True
    takes_steps = False
    at_answer = frozenset({"words"})
    most_accurate = False

    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        if self.config.words != 0:  # or the data choose it
            self.serves = ("dual encoder",)

    def grid(self, training: Training) -> dict[str, Choice]:
        own = super().grid(training)
        if self.config.words is not None:
            return own
        return own | {"words": Choice(WORDS, usual=1.0 if _names_help(training) else 0.0)}

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return [] if self.config.words == 0 else super().prompts(tokenizer, class_name)

    def scores(self, features: Tensor) -> Tensor:
        """Return logits `(b, n_classes)` for unit-length features `(b, e)`, before any zero-shot logits are added."""
        raise NotImplementedError

    def logits(self, step: ImageStep) -> Tensor:
        scores, words = self.scores(step.features), self.config.words
        return scores + words * step.cosine_logits(step.class_features) if words else scores


class LinearClassifier(PlainClassifier):
    """The base of linear classifiers, whose `solve` computes `weight` `(n_classes, e)` and `bias` `(n_classes,)`."""

    scale: float
    """The backbone's logit scale."""

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.weight = nn.Parameter(torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device))
        self.bias = nn.Parameter(torch.zeros(len(class_names), device=backbone.device))
        self.scale = backbone.logit_scale

    def prepare(self, training: Training) -> None:
        self.set(*self.solve(training.features("train").double(), training.labels("train")))

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Set the weight `(n_classes, e)` and the bias `(n_classes,)`."""
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)

    def solve(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight `(n_classes, e)` and bias `(n_classes,)`, fitted to unit-length `features` `(n, e)`."""
        raise NotImplementedError

    def scores(self, features: Tensor) -> Tensor:
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


def _names_help(training: Training) -> bool:
    """Return whether zero-shot classification of the training images by class names is clearly better than chance."""
    step = ImageStep(training.classifier, Encoded(training.features("train")))
    zero_shot, labels = step.cosine_logits(step.class_features), training.labels("train")
    chance = 1 / zero_shot.shape[1]
    right = float((zero_shot.argmax(-1).cpu() == labels).double().mean())
    return bool(right > chance + ABOVE * (chance * (1 - chance) / len(labels)) ** 0.5)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean feature of each class `(n_classes, e)` of images `(n, e)`; several `labels` are bool `(n, c)`."""
    if labels.dim() == 2:
        rows, labels = labels.nonzero(as_tuple=True)
        features = features[rows]
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / labels.bincount(minlength=classes)[:, None]


def against_covariance(rows: Tensor, deviations: Tensor, ridge: float, factor: float = 1.0) -> Tensor:
    """Return `rows` `(c, e)` times the inverse of `factor * deviations.T @ deviations + ridge * I`, in fp64.

    Of fewer `deviations` `(n, e)` than features, by Woodbury's identity, an `(n, n)` matrix is solved instead of the
    `(e, e)` one: exact, and for a few images of wide features a hundred times less work.
    """
    count, size = deviations.shape
    fewer = count < size and ridge > 0
    matrix = factor * (deviations @ deviations.T if fewer else deviations.T @ deviations)
    matrix.diagonal().add_(ridge)
    if not fewer:
        return torch.linalg.solve(matrix, rows.T).T
    return (rows - factor * torch.linalg.solve(matrix, deviations @ rows.T).T @ deviations) / ridge


FOLDS = 5
SURE = 0.05  # the least spread, so that logits stay small
UNLIKELY = 30.0  # how far the logit of a word without training images is below all others


class Regressor(Method[ImageStep], Grid, Grades, OwnClassifier):
    """The base class of regressors on standardised targets, which scikit-learn fits.

    The logit of a word is, up to a constant, the log-density of its level under a normal distribution around the
    predicted number. So logits are linear in the number, which is read from them again, and the mean of the logits of
    several images gives the mean of their numbers. `scale` `(3,)`, in fp64, are the mean and the standard deviation of
    the targets, and what is added to numbers so that the lowest level is 1. `levels` `(n,)` are the mean targets of
    the words, or 0 for a word without training images. `spread` `()` is the cross-validated error of numbers.
    """

    tasks = frozenset({"targets"})
    serves = ("dual encoder", "vision encoder")
    weighs_classes = False
    per_class = True
    takes_steps = False
    scale: Tensor
    levels: Tensor
    spread: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        count, device = len(class_names), backbone.device
        self.register_buffer("scale", doubled(torch.tensor([0.0, 1.0, 1.0], device=device)))
        self.register_buffer("levels", torch.arange(1.0, count + 1, device=device))
        self.register_buffer("spread", torch.ones((), device=device))

    def estimator(self) -> Any:
        """Return a new regressor of scikit-learn with the method's settings."""
        raise NotImplementedError

    def keep(self, fitted: Any, features: Tensor) -> None:
        """Set the method's tensors from the `fitted` regressor and the training features `(n, e)`."""
        raise NotImplementedError

    def predicted(self, features: Tensor) -> Tensor:
        """Return the predictions `(b,)` for unit-length features `(b, e)`, 0 for the mean of the targets."""
        raise NotImplementedError

    def prepare(self, training: Training) -> None:
        targets, labels = training.values("train"), training.labels("train")
        mean, deviation = targets.mean(), targets.std(correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)  # equal targets, as a fold may have, are all predicted
        targets, counts = (targets - mean) / deviation, labels.bincount(minlength=len(self.levels))
        levels = targets.new_zeros(len(counts)).index_add(0, labels, targets) / counts
        added = 1 - levels[counts > 0].min()
        self.levels = torch.where(counts > 0, levels + added, 0.0).to(self.levels)
        self.scale = torch.stack([mean, deviation, added]).to(self.scale)
        features = training.features("train").double()
        with torch.no_grad():
            self.keep(self.estimator().fit(features.numpy(), targets.numpy()), features)

    def finish(self, training: Training) -> None:
        from sklearn.model_selection import GroupKFold, cross_val_predict

        mean, deviation, _ = self.scale.cpu()  # an estimator without an intercept is far off on other targets
        features, targets = training.features("train").double(), (training.values("train") - mean) / deviation
        groups = kept_together(training.items("train"))
        if (count := min(FOLDS, len(set(groups)))) < 2:
            return
        folds = GroupKFold(count, shuffle=True, random_state=0)
        numbers = cross_val_predict(self.estimator(), features.numpy(), targets.numpy(), groups=groups, cv=folds)
        self.spread.fill_(max(SURE, float(((numbers - targets.numpy()) ** 2).mean() ** 0.5)))

    def logits(self, step: ImageStep) -> Tensor:
        levels, numbers = self.levels, self.predicted(step.features) + self.scale[2]
        logits = (numbers[:, None] * levels - levels.square() / 2) / self.spread.square()
        return torch.where(levels > 0, logits, logits.amin(-1, keepdim=True) - UNLIKELY)

    def score(self, logits: Tensor) -> Tensor:
        levels, spread, (mean, deviation, added) = doubled(self.levels), doubled(self.spread), self.scale
        times_levels = doubled(logits) * spread.square() + levels.square() / 2  # the number times each
        return mean + deviation * ((times_levels @ levels) / levels.square().sum() - added)
