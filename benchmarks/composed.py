"""Composed retrieval: the same drawing in another style, by the image, by words, by both, and by a pseudo-word."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.data import Item
from adapt.methods import ZeroShot
from adapt.methods.base import Encoded
from adapt.methods.base.traits import Composes, trait
from adapt.models.features import item_features
from adapt.recipe import read_recipe
from adapt.retrieval.index import slerp
from adapt.training.run_recipe import read_data
from benchmarks.drawings import backbone, drawings, paired, per_cent, row_of, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
CONCEPTS = 100  # drawn among those with a drawing in every style
SHARES = tuple(step / 10 for step in range(1, 10))
STYLES = {
    "emojione": "in the style of Emoji One",
    "fluent-3d": "in the style of Fluent 3D",
    "fluent-flat": "in the style of Fluent flat",
    "noto": "in the style of Noto",
    "twemoji": "in the style of Twemoji",
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report recall at 1 without the reference: of the drawing asked for, and of its concept in any style.

    Rows that learn from captions have the difference to the best of the others, on the same queries, too.
    """
    progress("features")
    features, others = gallery(), dict[str, tuple[Tensor, Tensor]]()
    words = alone().text_features([f"a drawing {words}" for words in STYLES.values()])[_styles()]
    images = features[_references()]
    for case, queries in {
        "image alone": images,
        "words alone": words,
        "mixture (SLERP 0.5)": F.normalize(images + words, dim=-1),
        **{f"SLERP {share}": slerp(images, words, share) for share in SHARES},
    }.items():
        others[case] = found(queries)
        yield row_of(case, {"drawing": per_cent([others[case][0]]), "concept": per_cent([others[case][1]])})
    best = max(others, key=lambda case: float(others[case][0].mean()))
    learned = []
    for seed in SEEDS:
        progress(f"pseudo-word, seed {seed}")
        recipe = read_recipe("pseudo_word", [("seed", seed)], "emoji-captions")
        learned.append(found(composed(trained(recipe, read_data(recipe)), images)))
    rights, concepts = zip(*learned, strict=True)
    gain = paired(rights, [others[best][0]] * len(SEEDS), [items()[place] for place in _references().tolist()])
    yield row_of(
        f"pseudo-word, against {best}", {"drawing": f"{per_cent(rights)} ({gain})", "concept": per_cent(concepts)}
    )


def composed(model: AdaptedModel, images: Tensor) -> Tensor:
    """Return the queries `(q, e)` that a trained model makes of the references' features `(q, e)` and the styles."""
    composes, styles = trait(model.method, Composes), _styles()
    assert composes is not None
    queries = torch.empty_like(images)
    with torch.no_grad():
        for number, words in enumerate(STYLES.values()):
            chosen = styles == number
            step = model.step(Encoded(images[chosen]))
            queries[chosen] = F.normalize(composes.composed(step, f"is {words}"), dim=-1)
    return queries


def found(queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether the nearest drawing but the reference has concept and style, and has the concept, as 0 or 1."""
    cosines = queries @ gallery().T
    cosines[torch.arange(len(queries)), _references()] = -torch.inf
    nearest = cosines.argmax(-1)
    concept = torch.tensor([items()[a].group == items()[b].group for a, b in zip(nearest, _references(), strict=True)])
    style = torch.tensor([[*STYLES].index(items()[place].domain) for place in nearest]) == _styles()
    return (concept & style).double(), concept.double()


@cache
def items() -> Sequence[Item]:
    """Return the drawings of some concepts, in every style."""
    by_concept: dict[str, dict[str, Item]] = {}
    for item in drawings("emoji-concepts").items():
        by_concept.setdefault(item.group, {})[item.domain] = item
    complete = sorted(name for name, own in by_concept.items() if len(own) == len(STYLES))
    return [by_concept[name][style] for name in random.Random(0).sample(complete, CONCEPTS) for style in STYLES]


@cache
def alone() -> AdaptedModel:
    """Return the bundled CLIP without any adapter."""
    model = adapt.wrap(backbone(), ZeroShot()).eval()
    assert isinstance(model, AdaptedModel)
    return model


@cache
def gallery() -> Tensor:
    """Return the unit-length features `(n, e)` of the drawings."""
    return item_features(alone(), items(), workers=0)


def _references() -> Tensor:
    """Return the number of each query's reference `(q,)`: a drawing is asked for in each of the other styles."""
    return torch.arange(len(items())).repeat_interleave(len(STYLES))[_others()]


def _styles() -> Tensor:
    """Return the number of the style that each query asks for `(q,)`."""
    return torch.arange(len(STYLES)).repeat(len(items()))[_others()]


def _others() -> Tensor:
    own = torch.arange(len(items())) % len(STYLES)
    return torch.cat([torch.arange(len(STYLES)) != style for style in own])
