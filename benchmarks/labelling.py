"""Labels for 48 more drawings, chosen by `adapt label`, by uncertainty alone or at random, from 2 labels a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import mean, stdev

import torch

from adapt.data import Item, Split
from adapt.evaluation.inference import Inference
from adapt.labelling.proposals import in_order, uncertainty
from adapt.models.image_model import ImageModel
from adapt.recipe import Recipe, read_recipe
from benchmarks.drawings import SEEN, drawings, right, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
SHOTS, MORE, A_ROUND, DRAWS = 2, 48, 10, 5
RECIPES = {
    "lda with words": ("lda", ["method.words=null", "method.ridge=null"]),
    "gda": ("gda", []),
    "linear_probe with words": ("linear_probe", ["method.words=null"]),
}
Order = Callable[[ImageModel, list[Item], list[Item], int, int], list[Item]]


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each method, with the accuracies before, and after labels in each order."""
    orders: dict[str, tuple[Order, int]] = {
        "adapt label": (_useful, 1),
        "least certain": (_uncertain, 1),
        "random": (_random, DRAWS),
    }
    for title, (name, sets) in RECIPES.items():
        recipe = read_recipe(name, [*sets, "data.shots=null"], SEEN)
        begun = [100 * float(right(trained(recipe, _few(seed)), drawings(SEEN).test).mean()) for seed in SEEDS]
        cells = [f"{mean(begun):.1f} before"]
        for order, (chosen, draws) in orders.items():
            progress(f"{title}: {order}")
            values = [mean(_labelled(recipe, chosen, seed, draw) for draw in range(draws)) for seed in SEEDS]
            cells.append(f"{order} {mean(values):.1f} ± {stdev(values):.1f}")
        yield {"case": title, "text": ", ".join(cells)}


def _few(seed: int) -> Split:
    return replace(drawings(SEEN).few_shot(SHOTS, seed), val=())


def _labelled(recipe: Recipe, order: Order, seed: int, draw: int) -> float:
    """Return the accuracy, in per cent, after labels of `MORE` images in rounds of `A_ROUND`, each with a training."""
    split, done = _few(seed), 0
    while done < MORE:
        model, count = trained(recipe, split), min(A_ROUND, MORE - done)
        known = {*split.train}
        pool = [item for item in drawings(SEEN).train if item not in known]
        split = replace(split, train=(*split.train, *order(model, pool, list(split.train), count, 100 * seed + draw)))
        done += count
    return 100 * float(right(trained(recipe, split), drawings(SEEN).test).mean())


def _useful(model: ImageModel, pool: list[Item], labelled: list[Item], count: int, seed: int) -> list[Item]:
    return [proposal.item for proposal in in_order(model, pool, labelled, count, seed, False)]


def _uncertain(model: ImageModel, pool: list[Item], labelled: list[Item], count: int, seed: int) -> list[Item]:
    weights = uncertainty(Inference().all_logits(model, pool).float().softmax(-1))
    return [pool[place] for place in weights.topk(count).indices.tolist()]


def _random(model: ImageModel, pool: list[Item], labelled: list[Item], count: int, seed: int) -> list[Item]:
    places = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1000 * seed + len(labelled)))
    return [pool[place] for place in places[:count].tolist()]
