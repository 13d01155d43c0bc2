"""Scenes of one to four things, all of which are to be named: zero-shot, by text residuals, by a linear head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel, tasks
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from benchmarks.drawings import backbone, drawings, per_cent, row_of, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
LABELS, OF_UNSEEN_STYLE = "emoji-labels", "emoji-labels@fluent-3d"
FIGURES = ("mean_average_precision", "f1")
_ALL = {
    "backbone": "mini-clip",
    "data.shots": None,
    "train.augment": "none",
    "train.epochs": 30,
    "train.batch_size": 32,
}
TRAININGS: dict[str, dict[str, object]] = {
    "task_res": {},
    "close": {"train.iterations": None, "train.lr": 0.05, "method.noise": 0.0},
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report mean average precision, and F1 at one half, on scenes in seen styles and in the unseen one."""
    split = drawings(LABELS)
    frozen = adapt.wrap(backbone(), ZeroShot(), split.class_names)
    tasks.of(split.items()).fit_answers(frozen, split.train, Inference())
    yield _row("zero-shot", [frozen])
    for name, changes in TRAININGS.items():
        progress(name)
        recipes = [read_recipe(name, ({"seed": seed} | _ALL | changes).items(), LABELS) for seed in SEEDS]
        yield _row(name, [trained(recipe, split) for recipe in recipes])


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    values = defaultdict[str, list[Tensor]](list)
    for model in models:
        for spec in (LABELS, OF_UNSEEN_STYLE):
            figures = evaluate(model, drawings(spec).test).figures()
            for name in FIGURES:
                values[f"{name}, {spec}"].append(torch.tensor(figures[name]))
    return row_of(case, {name: per_cent(each) for name, each in values.items()})
