"""Records found again by their image, their misread text, or both: before training, and by CLIPPINGS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

import adapt
from adapt import AdaptedModel
from adapt.data.emoji.archive import UNSEEN_STYLE
from adapt.evaluation.evaluate import evaluate
from adapt.methods import CLIPPINGS
from adapt.recipe import read_recipe
from adapt.training.run_recipe import learn
from benchmarks.drawings import backbone, built, drawings, per_cent
from benchmarks.text import Row

SEEDS = (1, 2, 3)
RECORDS = "emoji-records"
SHARES = {"text alone": 0.0, "both": 0.5, "image alone": 1.0}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """The share of records of concepts that training had none of whose nearest other one is of their concept."""
    for case, share in SHARES.items():
        yield _row(f"{case}, before training", [adapt.wrap(backbone(), CLIPPINGS(image_share=share), ()).eval()])
    progress("training")
    yield _row("both", [_trained(seed) for seed in SEEDS])


def _trained(seed: int) -> AdaptedModel:
    recipe = read_recipe("clippings", [("seed", seed)], RECORDS)
    model = built(recipe, ())
    learn(recipe, model, drawings(RECORDS), None, progress=False)
    return model.eval()


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    items = drawings(RECORDS).test
    scores = [evaluate(model, items) for model in models]
    found = [torch.tensor(each.right, dtype=torch.double) for each in scores]
    style_of = {item.path: item.domain for item in items}
    style = torch.tensor([style_of[path] == UNSEEN_STYLE for path in scores[0].paths])
    cells = {"linked": per_cent(found), "of the unseen style": per_cent([each[style] for each in found])}
    return {"case": case} | cells | {"text": " | ".join(cells.values())}
