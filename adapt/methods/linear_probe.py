"""Logistic regression on frozen image features.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.2.
Reference: CoOp `ff61507`, `lpclip/linear_probe.py` (L-BFGS, strength searched on the validation images).
Deviations: one grid of strengths replaces the reference's two-stage search; features have unit length; `words` adds
zero-shot logits, which is ours.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base import Choice, Training, Trial
from adapt.methods.base.plain_classifier import LinearClassifier, PlainClassifierConfig
from adapt.methods.base.traits import LearnsShares

logger = logging.getLogger("adapt")
STRENGTHS = tuple(10.0**k for k in range(-3, 4))  # inverse regularisation, 0.001 to 1,000
EXACT, ROUGH = 1e-10, 1e-4  # the largest component of the gradient, for final fits and for comparisons
MOST_STEPS = 20_000


class LinearProbeConfig(PlainClassifierConfig):
    strength: float | None = Field(default=None, gt=0)
    """Inverse regularisation (scikit-learn's C); null lets the data choose, from 0.001 to 1,000."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """The weights of images: equal, or balanced, one over the number of training images of their class."""


class LinearProbe(LinearClassifier, LearnsShares):
    """Logistic regression. `LinearProbe(strength)` stores `weight` `(n_classes, e)` and `bias` `(n_classes,)`."""

    name = "linear_probe"
    title = "Linear probe: logistic regression (Radford et al., ICML 2021)"
    Config = LinearProbeConfig
    most_accurate = True
    gives_odds = True
    choices = {"strength": Choice(STRENGTHS, usual=10.0)}
    example = {"strength": 10.0}
    _tolerance = EXACT

    def prepare(self, training: Training) -> None:
        """Fit the classifier. An image with a soft label is used for each class with the label's value as weight.

        Several classes an image are learned one by one, each against its absence.
        """
        features, shares = training.features("train").double(), training.shares("train")
        if training.labels("train").dim() == 2:
            # half an image more with each class and without it, which is nowhere, so that no bias is infinite
            features, shares = (torch.cat([own, own.new_zeros(2, own.shape[1])]) for own in (features, shares))
            shares[-1], counts = 1, torch.ones(len(shares)).index_fill_(0, torch.tensor([-2, -1]), 0.5)
            fits = [self.solve(features, own, counts) for own in shares.long().T]
            self.set(*(torch.stack([there - absent for absent, there in each]) for each in zip(*fits, strict=True)))
            return
        rows, labels = shares.nonzero(as_tuple=True)
        self.set(*self.solve(features[rows], labels, shares[rows, labels]))

    @property
    def balanced(self) -> bool:
        return bool(self.config.class_weights == "balanced")

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield trials as `Grid.trials` does, with a looser solver tolerance, which takes a tenth of the time."""
        self._tolerance = ROUGH
        try:
            yield from super().trials(training, choices, learned)
        finally:
            self._tolerance = EXACT

    def solve(self, features: Tensor, labels: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the fitted weight `(n_classes, e)` and bias `(n_classes,)`. `counts` `(n,)` are image weights."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        if len(labels.unique()) < 2:
            raise AdaptError(
                f"{self.name} divides classes, but all training images are of one class: add images of another class, "
                "or use a method such as nearest_mean"
            )
        weights = None if self.config.class_weights == "equal" else "balanced"
        solver = LogisticRegression(
            C=self.setting("strength"), class_weight=weights, tol=self._tolerance, max_iter=MOST_STEPS
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the warning below says what to do
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # classes with few images
            # The weight is a sum of training features. So of few wide ones, their coordinates in the space that they
            # span give the same weight, sooner.
            span, coordinates = torch.linalg.qr(features.T) if len(features) < features.shape[1] else (None, features.T)
            solver.fit(coordinates.T.numpy(), labels.numpy(), None if counts is None else counts.numpy())
        if solver.n_iter_.max() >= MOST_STEPS:
            logger.warning(
                "the logistic regression with strength %g did not converge in %d steps: set method.strength lower",
                self.config.strength, MOST_STEPS,
            )  # fmt: skip
        weight, bias = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
        weight = weight if span is None else weight @ span.T
        if len(weight) == 1:  # for two classes, scikit-learn returns their difference
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return weight, bias
