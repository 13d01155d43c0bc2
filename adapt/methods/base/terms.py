"""The terms of a loss: their sum, and extra terms that a recipe may add for any method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.shown import brief

if TYPE_CHECKING:
    from adapt.methods.base.step import ImageStep, Terms


def total(terms: Terms) -> Tensor:
    """Return the loss, as the sum of its `terms`."""
    first, *others = terms.values()
    return sum(others, first)


def checked(terms: object, owner: str) -> Terms:
    """Return the loss `terms` unchanged. Raises AdaptError, naming `owner`, if `terms` are not a dict of scalars."""
    expected = "expected a dict of terms by name, each a tensor with one number"
    if not isinstance(terms, dict) or not terms:
        raise AdaptError(f"{owner}: the function loss returned {brief(terms)}; {expected}")
    for name, term in terms.items():
        if not (isinstance(name, str) and isinstance(term, Tensor) and term.numel() == 1):
            kind = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else brief(term)
            raise AdaptError(f"{owner}: the loss term {name!r} is {kind}; {expected}")
    return terms


def distill(step: ImageStep) -> Tensor:
    """Return the mean cosine distance between adapted and frozen image features, as an extra term of the loss."""
    return 1 - (step.features.float() * step.frozen_features.float()).sum(-1).mean()


# the terms that a recipe may add to the loss of any method, by `train.terms`
TERMS: dict[str, Callable[[Any], Tensor]] = {"distill": distill}
