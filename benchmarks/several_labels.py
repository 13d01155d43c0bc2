"""Scenes of one to four things, all of which are to be named: zero-shot, by text residuals, by a linear head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

import adapt
from adapt import AdaptedModel
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from adapt.training.run_recipe import learn
from benchmarks.drawings import backbone, built, drawings, per_cent
from benchmarks.text import Row

SEEDS = (1, 2, 3)
LABELS, OF_UNSEEN_STYLE = "emoji-labels", "emoji-labels@fluent-3d"
FIGURES = ("mean_average_precision", "f1")
_ALL: list[tuple[str, object]] = [("backbone", "mini-clip"), ("data.shots", None), ("train.augment", "none")]
TRAININGS: dict[str, list[tuple[str, object]]] = {
    "task_res": [("train.epochs", 30), ("train.batch_size", 32)],
    "close": [
        ("train.iterations", None),
        ("train.epochs", 30),
        ("train.batch_size", 32),
        ("train.lr", 0.05),
        ("method.noise", 0.0),
    ],
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Mean average precision, and F1 at one half, on scenes in seen styles and in the unseen one."""
    frozen = adapt.wrap(backbone(), ZeroShot(), drawings(LABELS).class_names)
    drawings(LABELS).task.fit_baseline(frozen, drawings(LABELS).train, Inference())
    yield _row("zero-shot", [frozen])
    for name, changes in TRAININGS.items():
        progress(name)
        yield _row(name, [_trained(name, changes, seed) for seed in SEEDS])


def _trained(name: str, changes: list[tuple[str, object]], seed: int) -> AdaptedModel:
    recipe = read_recipe(name, [("seed", seed), *_ALL, *changes], LABELS)
    split = drawings(LABELS)
    model = built(recipe, split.class_names)
    learn(recipe, model, split, None, progress=False)
    return model.eval()


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    found: dict[str, list[torch.Tensor]] = {}
    for model in models:
        for spec in (LABELS, OF_UNSEEN_STYLE):
            figures = evaluate(model, drawings(spec).test).figures()
            for name in FIGURES:
                found.setdefault(f"{name}, {spec}", []).append(torch.tensor(figures[name]))
    cells = {what: per_cent(values) for what, values in found.items()}
    return {"case": case} | cells | {"text": " | ".join(cells.values())}
