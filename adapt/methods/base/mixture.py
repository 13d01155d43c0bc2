"""Mixtures of adapters with a common start: weights, and peft's ways to combine weight changes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from adapt.common.errors import AdaptError, nearest
from adapt.methods.base.traits import Trait

if TYPE_CHECKING:
    from adapt.methods.base.method import Method

Combination = Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"]


@dataclass(frozen=True)
class Mixture:
    """The settings for merging adapters, with a weight for each adapter and the name of a combination method of peft.

    `density` is the fraction of the entries of a weight change that is kept, in every combination other than `linear`.
    `rank` is the rank of a merged LoRA, where None leaves the rank to the combination. `seed` is the random seed for
    choosing the entries that `dare_...` drops.

    Raises AdaptError for an unknown combination, and for a density or rank that does not fit the combination.
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
            raise AdaptError(f"weights are {list(self.weights)}; expected a finite number for each adapter")
        if self.is_linear != (self.density is None):
            need = "has no density: leave density out" if self.is_linear else "needs a density, such as 0.2"
            raise AdaptError(f"the combination {self.combination} {need}")
        if self.density is not None and not 0 < self.density <= 1:
            raise AdaptError(f"density is {self.density}; expected the fraction of entries to keep, above 0 up to 1")
        if self.rank is not None and self.rank < 1:
            raise AdaptError(f"rank is {self.rank}; expected 1 or more")

    @property
    def is_linear(self) -> bool:
        return self.combination == "linear"

    def mean(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the adapters' tensors, each multiplied by the adapter's weight."""
        return reduce(torch.add, (weight * tensor for weight, tensor in zip(self.weights, tensors, strict=True)))

    def of_changes(self, changes: Sequence[Tensor]) -> Tensor:
        """Return the merged change of one weight `(out, in)`. Every call draws the entries to drop at random."""
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
    """The trait of methods that merge adapters by a rule of their own instead of averaging the adapters' tensors."""

    @classmethod
    @abstractmethod
    def mixed(cls, members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Return the settings and tensors of the adapter that merges `members` of this method with equal settings.

        Raises AdaptError for a mixture that the adapters' tensors do not allow.
        """


def mixed(members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the settings and tensors of the adapter that merges `members`, adapters of one method with equal settings.

    Raises AdaptError for a mixture that the adapters' tensors do not allow.
    """
    cls = type(members[0])
    if not issubclass(cls, Mixes):
        return mean_of(members, mixture)
    settings, tensors = cls.mixed(members, mixture)
    states = [member.state_dict() for member in members]
    head = [key for key in states[0] if key.startswith("classifier.")]  # a model's, where classes have no features
    return settings, tensors | {key: mixture.mean([state[key] for state in states]) for key in head}


def mean_of(members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the adapters' common settings, and the weighted mean of the adapters' trained tensors.

    Raises AdaptError if the mixture is not a mean, or if the adapters differ in a tensor that is not trained.
    """
    first = members[0]
    if not mixture.is_linear:
        raise AdaptError(
            f"{mixture.combination} mixes changes from a common start, which {first.name} adapters do not record: "
            "use linear, or mix lora adapters"
        )
    if mixture.rank is not None:
        raise AdaptError(
            f"rank is {mixture.rank}, but {first.name} adapters have no rank: leave rank out, or mix lora adapters"
        )
    if abs(sum(mixture.weights) - 1) > 1e-6:
        raise AdaptError(
            f"the weights sum to {sum(mixture.weights):g}; expected 1, because the tensors of {first.name} are averaged"
        )
    states = [member.state_dict() for member in members]
    trained = {name for name, _ in first.named_parameters()}
    tensors = {}
    for name, tensor in states[0].items():
        if name not in trained and not all(tensor.equal(state[name]) for state in states):
            raise AdaptError(
                f"{first.name}: the adapters differ in the tensor {name}, which comes from training images and cannot "
                f"be averaged: mix adapters with an equal {name}"
            )
        tensors[name] = mixture.mean([state[name] for state in states]) if name in trained else tensor
    return first.config.model_dump(mode="json"), tensors
