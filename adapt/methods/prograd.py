"""ProGrad: prompt-aligned gradients, in which no step of the context opposes the knowledge of the frozen model.

Paper: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023 (ProGrad).
Reference: Prompt-align `1b76203`, `ProGrad.public/trainers/prograd.py`.
Deviations:
* As in CoOp here, `ctx_init` is counted in tokens, and the context is fp32 whatever the backbone's precision.
* `ctx_init` initialises all learned tokens; the reference puts the words into the last of 16, and zeros the others.
* If the frozen model's gradient is zero, no gradient opposes it; the reference divides by its length.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, Terms, total
from adapt.methods.coop import CoOp, CoOpConfig
from adapt.methods.zero_shot import Template


class ProGradConfig(CoOpConfig):
    strength: float = Field(default=1.0, ge=0)
    """The removed share of a gradient's component against the frozen model's gradient (lambda)."""
    temperature: float = Field(default=1.0, gt=0)
    """The temperature of the frozen model's probabilities."""
    template: Template = "a photo of a {}."
    """The hand-written prompt of the frozen model, with {} for the class name."""


class ProGrad(CoOp):
    """A context with gradients that never oppose the frozen model's. `ProGrad(n_ctx, strength)` trains CoOp's `ctx`."""

    name = "prograd"
    title = "ProGrad (Zhu et al., ICCV 2023)"
    Config = ProGradConfig

    def loss(self, step: ImageStep) -> Terms:
        """Return two cross-entropies, with labels and with frozen-model probabilities (only for aligning gradients)."""
        t = self.config.temperature
        known = step.cosine_logits(step.frozen_class_features([self.config.template]), step.frozen_features)
        apart = -((known.float() / t).softmax(-1) * (step.logits.float() / t).log_softmax(-1)).sum(-1)
        return super().loss(step) | {"knowledge": t**2 * apart.mean()}

    def backward(self, terms: Terms) -> None:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        others = total({name: term for name, term in terms.items() if name != "knowledge"})
        task = torch.autograd.grad(others, parameters, retain_graph=True)
        known = torch.autograd.grad(terms["knowledge"], parameters)
        for parameter, own, general in zip(parameters, task, known):
            gradient = aligned(own, general, self.config.strength)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def aligned(own: Tensor, general: Tensor, strength: float) -> Tensor:
    """Return the gradient `own` minus `strength` times its component in the direction opposite to `general`."""
    unit = general / general.norm().clamp_min(torch.finfo(general.dtype).tiny)
    against = (own * unit).sum().clamp_max(0)
    return own - strength * against * unit
