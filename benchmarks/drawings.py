"""Accuracies on the bundled drawings, and differences of two models on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import mean, pstdev

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.base import DualEncoder
from adapt.data import Item, Split
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.intervals import NORMAL, standard_error
from adapt.methods import ZeroShot
from adapt.models.base import Adapted
from adapt.recipe import Recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.measure import Row

SEEN, UNSEEN = "emoji", "emoji@fluent-3d"  # styles that the bundled backbone knows, and one that it does not


@cache
def drawings(spec: str) -> Split:
    """Return the bundled data set of this name."""
    return adapt.data.load(spec)


@cache
def backbone() -> DualEncoder:
    """Return the bundled CLIP."""
    return adapt.load_backbone("mini-clip")


def zero_shot(class_names: Sequence[str] = ()) -> AdaptedModel:
    """Return the bundled CLIP as it is."""
    model = adapt.wrap(backbone(), ZeroShot(), class_names).eval()
    assert isinstance(model, AdaptedModel)
    return model


def trained(recipe: Recipe, split: Split, on: DualEncoder | None = None) -> AdaptedModel:
    """Return the recipe's method on the bundled CLIP, or `on` another one, trained on `split`."""
    model = build(recipe, split.class_names, on or backbone())
    assert isinstance(model, AdaptedModel)
    fit_plan(plan_of(recipe, model, split), None)
    return model.eval()


def right(model: Adapted, items: Sequence[Item]) -> Tensor:
    """Return which items `(n,)` a model answers correctly, as 0 or 1."""
    return torch.tensor(evaluate(model, items).right, dtype=torch.double)


def per_cent(rights: Sequence[Tensor]) -> str:
    """Return the accuracy over seeds: the mean, and for several seeds their standard deviation."""
    values = [100 * float(each.mean()) for each in rights]
    return f"{mean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def paired(ours: Sequence[Tensor], other: Sequence[Tensor], items: Sequence[Item]) -> str:
    """Return the mean difference on the same images with half a 95 % interval.

    Drawings are grouped by concept, and questions by image.
    """
    return apart(ours, other, [item.kept_with for item in items])


def apart(ours: Sequence[Tensor], other: Sequence[Tensor], groups: Sequence[str]) -> str:
    """Return the mean difference on the same images, which are of these `groups`, with half a 95 % interval."""
    by_image = torch.stack(list(ours)).mean(0) - torch.stack(list(other)).mean(0)
    return f"{100 * float(by_image.mean()):+.1f} ± {100 * NORMAL * standard_error(by_image, groups):.1f}"


def row_of(case: str, cells: Mapping[str, str]) -> Row:
    """Return a row with these cells, printed side by side."""
    return {"case": case, **cells, "text": " | ".join(cells.values())}
