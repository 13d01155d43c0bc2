"""Logistic regression on frozen image features.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.2.
Reference: CoOp `ff61507`, `lpclip/linear_probe.py` (L-BFGS, strength searched on the validation images).
Deviations: one grid of strengths in place of the reference's two-stage search; features of unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.methods.base import ImageStep, Method, MethodConfig, Training

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-2, 13))  # inverse regularisation, 0.1 to 1e6


class LinearProbeConfig(MethodConfig):
    strength: float | None = Field(default=None, gt=0)
    """Inverse regularisation (scikit-learn's C); chosen on the validation images where left out."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """How much an image counts: the same, or one over how many training images its class has."""


class LinearProbe(Method):
    """Trains `weight` `(n_classes, e)` and `bias` `(n_classes,)` by a solver, not by gradient steps."""

    name = "linear_probe"
    title = "Linear probe (Radford et al., ICML 2021)"
    Config = LinearProbeConfig
    example = {"strength": 10.0}
    needs_every_class = True
    per_class = True
    takes_steps = False

    @property
    def chosen_on_validation(self) -> str | None:
        return "strength" if self.config.strength is None else None

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.weight = nn.Parameter(torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device))
        self.bias = nn.Parameter(torch.zeros(len(class_names), device=backbone.device))

    def logits(self, step: ImageStep) -> Tensor:
        return self._head(step.features)

    def _head(self, features: Tensor) -> Tensor:
        """Unit-length features `(b, e)` to logits `(b, n_classes)`."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    def prepare(self, training: Training) -> None:
        train = training.features("train"), training.labels("train")
        val = (training.features("val"), training.labels("val")) if training.items("val") else None
        training.note(solver=self.solve(train, val))

    def solve(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None) -> dict[str, float]:
        """Fits the head to features `(n, e)` and labels `(n,)`; returns the strength chosen and its accuracy."""
        if self.config.strength is not None:
            self._fit(train, self.config.strength)
            return {"strength": self.config.strength}
        assert val is not None  # as `chosen_on_validation` asks for
        scored = {strength: self._accuracy(self._fit(train, strength), val) for strength in STRENGTHS}
        best = max(scored, key=scored.__getitem__)
        self._fit(train, best)
        return {"strength": best, "val_accuracy": scored[best]}

    @torch.enable_grad()
    def _fit(self, train: tuple[Tensor, Tensor], strength: float) -> LinearProbe:
        """Puts the minimum of the penalised cross-entropy, which is that of scikit-learn's LogisticRegression, here."""
        features, labels = train[0].cpu().double(), train[1].cpu()
        # from where it is: a search has the solution of the strength before, which is near
        weight, bias = (each.detach().cpu().double().requires_grad_() for each in self.parameters())
        weights = self._weights(labels)
        # of two classes scikit-learn penalises one row, the difference of these two
        penalty = (1.0 if len(bias) == 2 else 0.5) / (strength * len(labels))
        solver = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(features @ weight.T + bias, labels, weights) + penalty * weight.square().sum()
            value.backward()
            return value

        solver.step(loss)
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)
        return self

    @torch.no_grad()
    def _accuracy(self, fitted: LinearProbe, val: tuple[Tensor, Tensor]) -> float:
        features, labels = val
        right = (fitted._head(features.to(self.weight.device)).argmax(-1).cpu() == labels).double()
        weights = self._weights(labels)[labels]
        return float((right * weights).sum() / weights.sum())

    def _weights(self, labels: Tensor) -> Tensor:
        """How much an image of each class counts `(n_classes,)` among images with these labels `(n,)`."""
        counts = labels.bincount(minlength=len(self.bias)).double()
        return torch.ones_like(counts) if self.config.class_weights == "equal" else 1 / counts.clamp_min(1)
