"""The vocabulary of changes that a method asks of a tower, as data. Only the engine applies them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """Learned tokens take the places that the prompts keep for them, before positions are added.

    `values`: `(k, d)` shared by all classes, or `(n, k, d)` for each class its own.
    """

    values: Tensor

    @property
    def per_class(self) -> bool:
        return self.values.ndim == 3


@dataclass(frozen=True)
class Replace:
    """`module` computes a projection of one block in place of the frozen one: `(..., in) -> (..., out)`."""

    block: int
    projection: str  # q, k, v, out, fc1 or fc2
    module: nn.Module


Edit = Tokens | Replace
