"""Averages of the trained tensors over a training, which replace them at its end.

Sources: PromptSRC `bb95c77` (Gaussian weights over epochs); Izmailov et al., UAI 2018 (stochastic weight averaging,
SWA); Polyak and Juditsky, 1992, with exponential weights (EMA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from adapt.methods.base import Method
    from adapt.recipe.settings import Average


class RunningAverage:
    """A running average of a method's parameters, as a weighted sum over epochs or a moving average over steps.

    Parameters that adapters leave out are averaged too, because they learned to fit the others.
    """

    def __init__(self, method: Method, settings: Average, epochs: int) -> None:
        own = dict(method.named_parameters())
        known = {id(parameter) for parameter in own.values()}
        others = [parameter for parameter in method.trains() if id(parameter) not in known]
        self._parameters = own | {f"aside.{number}": each for number, each in enumerate(others)}
        self._weights = epoch_weights(settings, epochs)
        self._decay = settings.ema.decay if settings.ema else None
        self.values: dict[str, Tensor] = {  # a moving average starts from the initial parameters
            name: torch.zeros_like(each) if self._decay is None else each.detach().clone()
            for name, each in self._parameters.items()
        }

    @torch.no_grad()
    def step_done(self) -> None:
        """Update the average with the current parameters after an optimiser step, if the average is over steps."""
        if self._decay is not None:
            for name, parameter in self._parameters.items():
                self.values[name].lerp_(parameter, 1 - self._decay)

    @torch.no_grad()
    def epoch_done(self, epoch: int) -> None:
        """Add the current parameters at the end of `epoch`, counted from 0, if the average is over epochs."""
        if self._decay is None:
            for name, parameter in self._parameters.items():
                self.values[name] += self._weights[epoch] * parameter

    @torch.no_grad()
    def settle(self) -> None:
        """Replace the parameters by the running average."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])


def epoch_weights(settings: Average, epochs: int) -> Sequence[float]:
    """Return the weights of all epochs, which sum to 1, or an empty sequence for an average over steps.

    Gaussian weights are proportional to `exp(-(t - mean)^2 / (2 std^2))` for epoch t, counted from 1. Raises AdaptError
    if every weight is zero.
    """
    if settings.gaussian is not None:
        mean, std = settings.gaussian.mean, settings.gaussian.std
        weights = [math.exp(-((epoch - mean) ** 2) / (2 * std**2)) for epoch in range(1, epochs + 1)]
    elif settings.swa is not None:
        weights = [float(epoch >= settings.swa.start) for epoch in range(1, epochs + 1)]
    else:
        return ()
    if not sum(weights):
        raise AdaptError(
            f"train.average gives a weight of zero to all {epochs} epochs, which are counted from 1: set the mean or "
            f"start of train.average to a number from 1 to {epochs}"
        )
    return [weight / sum(weights) for weight in weights]
