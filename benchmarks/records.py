"""Records found again by their image, their misread text, or both: before training, and by CLIPPINGS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

import adapt
from adapt import AdaptedModel
from adapt.data.emoji.bundled import UNSEEN_STYLE
from adapt.evaluation.evaluate import evaluate
from adapt.methods import CLIPPINGS
from adapt.recipe import read_recipe
from benchmarks.drawings import backbone, drawings, per_cent, row_of, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
RECORDS = "emoji-records"
SHARES = {"text alone": 0.0, "both": 0.5, "image alone": 1.0}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the share of records of held-out concepts whose nearest other record is of the same concept."""
    for case, share in SHARES.items():
        yield _row(f"{case}, before training", [adapt.wrap(backbone(), CLIPPINGS(image_share=share), ()).eval()])
    progress("training")
    recipes = [read_recipe("clippings", [("seed", seed)], RECORDS) for seed in SEEDS]
    yield _row("both", [trained(recipe, drawings(RECORDS)) for recipe in recipes])


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    items = drawings(RECORDS).test
    scores = [evaluate(model, items) for model in models]
    right = [torch.tensor(each.right, dtype=torch.double) for each in scores]
    style_of = {item.path: item.domain for item in items}
    style = torch.tensor([style_of[path] == UNSEEN_STYLE for path in scores[0].paths])
    return row_of(case, {"linked": per_cent(right), "of the unseen style": per_cent([each[style] for each in right])})
