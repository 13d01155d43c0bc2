"""Logistic regression on frozen image features.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.2.
Reference: CoOp `ff61507`, `lpclip/linear_probe.py` (L-BFGS, strength searched on the validation images).
Deviations: one grid of strengths in place of the reference's two-stage search; features of unit length; beside
zero-shot logits where `words` asks for them, which is ours.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import Choice, Training, Trial
from adapt.methods.base.plain_classifier import LinearClassifier, PlainClassifierConfig
from adapt.methods.base.traits import LearnsShares

logger = logging.getLogger("adapt")
STRENGTHS = tuple(10.0**k for k in range(-3, 4))  # inverse regularisation, 0.001 to 1,000
USUAL = 10.0  # on unit-length features
EXACT, ROUGH = 1e-10, 1e-4  # the largest component of the gradient: of what is kept, and of what is only compared
MOST_STEPS = 20_000


class LinearProbeConfig(PlainClassifierConfig):
    strength: float | None = Field(default=None, gt=0)
    """Inverse regularisation (scikit-learn's C); null leaves it to the data, from 0.001 to 1,000."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """How much an image counts: the same, or one over how many training images its class has."""


class LinearProbe(LinearClassifier, LearnsShares):
    """Scikit-learn's `LogisticRegression` as `weight` `(n_classes, e)` and `bias` `(n_classes,)`."""

    name = "linear_probe"
    title = "Linear probe: logistic regression (Radford et al., ICML 2021)"
    Config = LinearProbeConfig
    example = {"strength": 10.0}
    _tolerance = EXACT

    def prepare(self, training: Training) -> None:
        """An image that belongs to several classes by shares counts in each, by its share."""
        shares = training.shares("train")
        rows, labels = shares.nonzero(as_tuple=True)
        self.set(*self.solve(training.features("train").double()[rows], labels, shares[rows, labels]))

    def grid(self, training: Training) -> dict[str, Choice]:
        strength = {"strength": Choice(STRENGTHS, usual=USUAL)} if self.config.strength is None else {}
        return strength | super().grid(training)

    @property
    def balanced(self) -> bool:
        return bool(self.config.class_weights == "balanced")

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield the trials of `Grid.trials`, at a tolerance at which a strength takes a tenth of the time."""
        self._tolerance = ROUGH
        try:
            yield from super().trials(training, choices, learned)
        finally:
            self._tolerance = EXACT

    def solve(self, features: Tensor, labels: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The weight and bias of `LinearClassifier.solve`; `counts` `(n,)` say how much each image counts."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        weights = None if self.config.class_weights == "equal" else "balanced"
        solver = LogisticRegression(
            C=self.config.strength, class_weight=weights, tol=self._tolerance, max_iter=MOST_STEPS
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the steps say it, with what to do
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # a few images each
            solver.fit(features.numpy(), labels.numpy(), None if counts is None else counts.numpy())
        if solver.n_iter_.max() >= MOST_STEPS:
            logger.warning(
                "the logistic regression of strength %g did not end in %d steps: set method.strength lower",
                self.config.strength, MOST_STEPS,
            )  # fmt: skip
        weight, bias = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
        if len(weight) == 1:  # of two classes scikit-learn keeps the difference
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return weight, bias
