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
from adapt.training.run_recipe import learn, read_data
from benchmarks.drawings import SEEN, UNSEEN, backbone, built, drawings, paired, per_cent, right
from benchmarks.text import Row

SEEDS = (1, 2, 3)
NOISE = (0.0, 0.04, 0.08, 0.12, 0.2, 0.3)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Accuracy in the seen styles and in the unseen one; under noise with the difference to none."""
    noiseless: list[AdaptedModel] = []
    for case, models in _cases(progress):
        noiseless = noiseless or (models if case == "noise 0.0" else [])
        row: Row = {"case": case}
        for spec in (SEEN, UNSEEN):
            items = drawings(spec).test
            found, without = ([right(model, items) for model in listed] for listed in (models, noiseless))
            gain = f" ({paired(found, without, items)})" if without and models is not noiseless else ""
            row[spec] = per_cent(found) + gain
        yield row | {"text": f"{row[SEEN]} | {row[UNSEEN]}"}


def _cases(progress: Callable[[str], None]) -> Iterator[tuple[str, list[AdaptedModel]]]:
    names = drawings(SEEN).class_names
    yield "the groups' names", [adapt.wrap(backbone(), ZeroShot(), names)]
    untrained = adapt.wrap(backbone(), ZeroShot(), names)
    mean = _mean_names(untrained)
    untrained.class_features = lambda *_: mean  # type: ignore[method-assign]
    yield "mean of the texts, untrained", [untrained]
    for noise in NOISE:
        progress(f"noise {noise}")
        yield f"noise {noise}", [_trained(noise, seed) for seed in SEEDS]


def _trained(noise: float, seed: int) -> AdaptedModel:
    recipe = read_recipe("close", [("method.noise", noise), ("seed", seed)], "emoji-texts")
    split = read_data(recipe)
    model = built(recipe, split.class_names)
    learn(recipe, model, split, None, progress=False)
    return model


def _mean_names(model: AdaptedModel) -> Tensor:
    """The mean feature of the texts of each group `(n, e)`, of unit length."""
    items = drawings("emoji-texts").train
    features, labels = (
        model.text_features([item.text for item in items]),
        items[0].task.numbers(items, model.class_names),
    )
    means = [features[labels == label].mean(0) for label in range(len(model.class_names))]
    return F.normalize(torch.stack(means), dim=-1)
