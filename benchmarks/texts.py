"""A classifier of the bundled groups learned from names alone, with noise and without, against drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from adapt.training.run_recipe import read_data
from benchmarks.drawings import SEEN, UNSEEN, backbone, drawings, paired, per_cent, right, row_of, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
NOISE = (0.0, 0.04, 0.08, 0.12, 0.2, 0.3)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report accuracy in the seen styles and in the unseen one; with noise also the difference to no noise."""
    noiseless: list[AdaptedModel] = []
    for case, models in _cases(progress):
        noiseless = noiseless or (models if case == "noise 0.0" else [])
        cells = {}
        for spec in (SEEN, UNSEEN):
            items = drawings(spec).test
            ours, without = ([right(model, items) for model in listed] for listed in (models, noiseless))
            gain = f" ({paired(ours, without, items)})" if without and models is not noiseless else ""
            cells[spec] = per_cent(ours) + gain
        yield row_of(case, cells)


def _cases(progress: Callable[[str], None]) -> Iterator[tuple[str, list[AdaptedModel]]]:
    names = drawings(SEEN).class_names
    yield "the groups' names", [adapt.wrap(backbone(), ZeroShot(), names)]
    untrained = adapt.wrap(backbone(), ZeroShot(), names)
    mean = _mean_names(untrained)
    untrained.class_features = lambda *_: mean  # type: ignore[method-assign]
    yield "mean of the texts, untrained", [untrained]
    for noise in NOISE:
        progress(f"noise {noise}")
        recipes = [read_recipe("close", [("method.noise", noise), ("seed", seed)], "emoji-texts") for seed in SEEDS]
        yield f"noise {noise}", [trained(recipe, read_data(recipe)) for recipe in recipes]


def _mean_names(model: AdaptedModel) -> Tensor:
    """Return the mean feature of the texts of each group `(n, e)`, normalised to unit length."""
    items = drawings("emoji-texts").train
    features = model.text_features([item.text for item in items])
    labels = items[0].task.numbers(items, model.class_names)
    means = [features[labels == label].mean(0) for label in range(len(model.class_names))]
    return F.normalize(torch.stack(means), dim=-1)
