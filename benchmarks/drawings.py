"""Accuracies on the bundled drawings, and differences of two that answer the same images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt.backbones.base import DualEncoder
from adapt.data import Item, Split
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.noise import standard_error
from adapt.recipe import Recipe
from adapt.training.run_recipe import build

SEEN, UNSEEN = "emoji", "emoji@fluent-3d"  # styles that the bundled backbone knows, and one that it does not
NORMAL = 1.96  # standard errors that 95 of 100 intervals reach to


@cache
def drawings(spec: str) -> Split:
    """The bundled set of this name."""
    return adapt.data.load(spec)


@cache
def backbone() -> DualEncoder:
    """The bundled CLIP."""
    return adapt.load_backbone("mini-clip")


def built(recipe: Recipe, class_names: tuple[str, ...]) -> adapt.AdaptedModel:
    """The recipe's method on the bundled CLIP, not yet trained."""
    model = build(recipe, class_names, backbone())
    assert isinstance(model, adapt.AdaptedModel)
    return model


def right(model: Any, items: Sequence[Item]) -> Tensor:
    """Which of the images `(n,)` a model takes for what they are, as 0 or 1."""
    return torch.tensor(evaluate(model, items).right, dtype=torch.double)


def per_cent(rights: Sequence[Tensor]) -> str:
    """Accuracy over seeds: the mean, and with several their standard deviation."""
    values = [100 * float(each.mean()) for each in rights]
    return f"{mean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def paired(ours: Sequence[Tensor], other: Sequence[Tensor], items: Sequence[Item]) -> str:
    """The difference of two, over the same images, with half a 95 % interval: one concept's drawings go together."""
    apart = torch.stack(list(ours)).mean(0) - torch.stack(list(other)).mean(0)
    error = standard_error(apart, [item.group for item in items])
    return f"{100 * float(apart.mean()):+.1f} ± {100 * NORMAL * error:.1f}"
