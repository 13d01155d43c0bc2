"""How several adapters of a common start become one: weights, and peft's ways of mixing changes of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adapt.errors import AdaptError, nearest

Combination = Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"]


@dataclass(frozen=True)
class Mixture:
    """`weights` of the members, one each, and how changes of weights are combined, by the names that peft has.

    `density` is the share of a change's entries that all but `linear` keep, `rank` that of a low-rank result, None for
    what the combination gives, and `seed` of the entries that `dare_...` drops.

    Raises AdaptError for a combination that there is none of, and a density or rank that does not go with it.
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
            raise AdaptError(f"density is {self.density}; expected the share of entries that are kept, over 0 to 1")
        if self.rank is not None and self.rank < 1:
            raise AdaptError(f"rank is {self.rank}; expected 1 or more")

    @property
    def is_linear(self) -> bool:
        return self.combination == "linear"

    def mean(self, tensors: Sequence[Tensor]) -> Tensor:
        """The sum of the tensors by their weights."""
        return reduce(torch.add, (weight * tensor for weight, tensor in zip(self.weights, tensors, strict=True)))

    def of_changes(self, changes: Sequence[Tensor]) -> Tensor:
        """One change of a weight `(out, in)` in place of several; each call draws its own entries to drop."""
        if self.is_linear:
            return self.mean(changes)
        from peft.utils import merge_utils

        combine: Callable[..., Any] = getattr(merge_utils, self.combination)
        mixed: Tensor = combine(list(changes), torch.tensor(self.weights, device=changes[0].device), self.density)
        return mixed


def default_weights(members: int, combination: str) -> tuple[float, ...]:
    """A mean; 1 each where the combination takes a mean itself, of the entries that agree."""
    return (1.0 if "ties" in combination else 1 / members,) * members
