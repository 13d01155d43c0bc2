"""Mixtures of adapters with a common start: weights, and peft's ways to combine weight changes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from adapt.errors import AdaptError, nearest
from adapt.methods.base.traits import Trait

if TYPE_CHECKING:
    from adapt.methods.base.method import Method

Combination = Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"]


@dataclass(frozen=True)
class Mixture:
    """Settings for mixing adapters: a weight for each adapter, and peft's name for the way to combine their changes.

    `density` is the fraction of entries of a change that is kept, in every combination but `linear`. `rank` is the rank
    of a low-rank result; None keeps the rank that the combination gives. `seed` is for drawing the entries that
    `dare_...` drops.

    Raises AdaptError for an unknown combination, and for a density or rank that does not fit it.
    """

    weights: tuple[float, ...]
    combination: Combination = "linear"
    density: float | None = None
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.combination not in get_args(Combination):
            raise AdaptError(
                f"unknown combination {self.combination!r}; {nearest(self.combination, get_args(Combination))}"
            )
        if not self.weights or not all(torch.isfinite(torch.tensor(self.weights))):
            raise AdaptError(f"weights are {list(self.weights)}; expected a number for each adapter")
        if self.is_linear != (self.density is None):
            need = "has no density: leave it out" if self.is_linear else "needs a density, such as 0.2"
            raise AdaptError(f"{self.combination} {need}")
        if self.density is not None and not 0 < self.density <= 1:
            raise AdaptError(f"density is {self.density}; expected the share of entries to keep, over 0 and up to 1")
        if self.rank is not None and self.rank < 1:
            raise AdaptError(f"rank is {self.rank}; expected 1 or more")

    @property
    def is_linear(self) -> bool:
        return self.combination == "linear"

    def mean(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the adapters' tensors, each times the adapter's weight."""
        return reduce(torch.add, (weight * tensor for weight, tensor in zip(self.weights, tensors, strict=True)))

    def of_changes(self, changes: Sequence[Tensor]) -> Tensor:
        """Return the combination of the adapters' changes of one weight `(out, in)`; dropped entries are drawn anew."""
        if self.is_linear:
            return self.mean(changes)
        from peft.utils import merge_utils

        combine: Callable[..., Any] = getattr(merge_utils, self.combination)
        mixed: Tensor = combine(list(changes), torch.tensor(self.weights, device=changes[0].device), self.density)
        return mixed


def default_weights(members: int, combination: str) -> tuple[float, ...]:
    """Return the default weight of each adapter: `1 / members`, or 1 for a combination that itself averages entries."""
    return (1.0 if "ties" in combination else 1 / members,) * members


class Mixes(Trait):
    """The trait of methods with their own way to mix adapters, in place of the mean of their tensors."""

    @classmethod
    @abstractmethod
    def mixed(cls, members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the settings and tensors of the mixture of several adapters of this method with the same settings.

        Raises AdaptError for a mixture that the adapters' tensors do not allow.
        """


def mixed(members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and tensors of the mixture of several adapters of one method with the same settings.

    Raises AdaptError for a mixture that the adapters' tensors do not allow.
    """
    cls = type(members[0])
    return cls.mixed(members, mixture) if issubclass(cls, Mixes) else mean_of(members, mixture)


def mean_of(members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings that all adapters have, and the weighted mean of their trained tensors.

    Raises AdaptError if the mixture is not a mean, or if the adapters differ in a tensor that is not trained.
    """
    first = members[0]
    if not mixture.is_linear:
        raise AdaptError(
            f"{mixture.combination} mixes changes from a common start, and a {first.name} adapter does not record its "
            "start: use linear, or adapters of lora"
        )
    if mixture.rank is not None:
        raise AdaptError(
            f"rank is {mixture.rank}, but {first.name} adapters have no rank: leave it out (only lora has one)"
        )
    if abs(sum(mixture.weights) - 1) > 1e-6:
        raise AdaptError(
            f"the weights sum to {sum(mixture.weights):g}; expected 1, for a mean of {first.name}'s tensors"
        )
    states = [member.state_dict() for member in members]
    trained = {name for name, _ in first.named_parameters()}
    tensors = {}
    for name, tensor in states[0].items():
        if name not in trained and not all(tensor.equal(state[name]) for state in states):
            raise AdaptError(
                f"{first.name}: the adapters differ in {name}, computed from training images, which has no mean: "
                "mix adapters that agree in it"
            )
        tensors[name] = mixture.mean([state[name] for state in states]) if name in trained else tensor
    return first.config.model_dump(mode="json"), tensors
