"""The loss of a batch by its parts: what they add up to, and those that a recipe may add to any method's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adapt.errors import AdaptError
from adapt.methods.base.step import ImageStep, Terms
from adapt.shown import brief


def total(terms: Terms) -> Tensor:
    """The loss that its terms add up to."""
    first, *others = terms.values()
    return sum(others, first)


def checked(terms: Any, method: str) -> Terms:
    """The terms of a method's loss. AdaptError, with its name, for what is none."""
    expected = "expected the terms of a loss by their names, each a tensor with one number"
    if not isinstance(terms, dict) or not terms:
        raise AdaptError(f"{method}: its loss gave {brief(terms)}; {expected}")
    for name, term in terms.items():
        if not (isinstance(name, str) and isinstance(term, Tensor) and term.numel() == 1):
            kind = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else brief(term)
            raise AdaptError(f"{method}: the term {name!r} of its loss is {kind}; {expected}")
    return terms


def distill(step: ImageStep) -> Tensor:
    """The mean of one minus the cosine of image features with those of the backbone alone."""
    return 1 - (step.features.float() * step.frozen_features.float()).sum(-1).mean()


TERMS: dict[str, Callable[[Any], Tensor]] = {
    "distill": distill
}  # those that a recipe may add to any method's loss, by `train.terms`
