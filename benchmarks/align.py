"""Losses beside that of the answers, for the projector (CG-VLM, VLAP, OLA-VLM): answers after little training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any, cast

from torch import Tensor

import adapt
from adapt.models.vision_llm import SpeakingModel
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import drawings, per_cent, right, row_of
from benchmarks.measure import Row

DATA = "emoji-questions"
SEEDS = (1, 2, 3)
TRAININGS = {"all questions, 2 epochs": (1, 2), "a tenth of them, 20 epochs": (10, 20)}  # one in so many, epochs
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {  # a recipe and settings
    "answers alone": ("projector", {}),
    "words (CG-VLM)": ("projector", {"align": "words"}),
    "assignment (VLAP)": ("projector", {"align": "assignment"}),
    "assignment by softmax (VLAP's code)": ("projector", {"align": "assignment", "transport": "softmax"}),
    "features of mini-clip-half (OLA-VLM)": ("ola_vlm", {}),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report how many questions of the test are answered right, for each loss and two trainings of equal length."""
    for case, (recipe, settings) in LOSSES.items():
        figures = {}
        for training, (one_in, epochs) in TRAININGS.items():
            rights = list[Tensor]()
            for seed in SEEDS:
                progress(f"{case}: {training}, seed {seed}")
                rights.append(_right(recipe, settings, one_in, epochs, seed))
            figures[training] = f"{training}: {per_cent(rights)}"
        yield row_of(case, figures)


def _right(name: str, settings: dict[str, Any], one_in: int, epochs: int, seed: int) -> Tensor:
    split = drawings(DATA)
    changes = [
        ("seed", seed),
        ("train.epochs", epochs),
        *((f"method.{name}", value) for name, value in settings.items()),
    ]
    recipe = read_recipe(name, changes, DATA)
    model = cast("SpeakingModel", build(recipe, split.class_names, adapt.load_backbone("mini-clip+mini-lm")))
    known = Random(seed).sample(split.train, len(split.train) // one_in)
    fit_plan(plan_of(recipe, model, replace(split, train=tuple(known), val=(), test=())), None)
    return right(model.eval(), split.test)
