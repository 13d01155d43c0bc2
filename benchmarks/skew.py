"""Answers learned from a skewed set: what the skew costs, and what calibration and debiased decoding repair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any, cast

import torch
from torch import Tensor

import adapt
from adapt.data import Item
from adapt.data.decoding.images import open_image
from adapt.data.emoji.questions import GROUP
from adapt.models.native_vlm import ChatModel
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import drawings, per_cent, row_of
from benchmarks.measure import Row

DATA = "emoji-questions"
SEEDS = (1, 2, 3)
KINDS = ("animal", "vehicle", "fruit", "clothing", "vegetable", "ball", "flower", "instrument")
SETS = {"even answers": (9, 9), "nine in ten are animals": (63, 1)}  # training questions of animals, of each other kind
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"calibrate": "none", "debias": "none"},
    "unk": {"calibrate": "unk", "debias": "unk"},
    "both": {"calibrate": "both", "debias": "both"},
    "noise": {"calibrate": "noise", "debias": "noise"},
    "none, alpha 0.5": {"debias": "none", "alpha": 0.5},
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report how many questions "what kind of thing is it?" are answered right, by a choice and in words."""
    items = [item for item in drawings(DATA).test if _asks(item)]
    for case, (animals, others) in SETS.items():
        figures = defaultdict[str, list[Tensor]](list)
        for seed in SEEDS:
            progress(f"{case}, seed {seed}")
            model = trained(animals, others, seed)
            for way, settings in WAYS.items():
                model.set_at_use(**{"calibrate": None, "debias": None, "alpha": 1.0} | settings)
                if "alpha" not in settings:
                    figures[f"choice, {way}"].append(chosen(model, items))
                figures[f"words, {way}"].append(said(model, items))
        cells = {name: per_cent(values) for name, values in figures.items()}
        yield row_of(case, {name: f"{name}: {cell}" for name, cell in cells.items()})


def trained(animals: int, others: int, seed: int) -> ChatModel:
    """Return the bundled native model after LoRA on questions about so many animals, and things of each other kind."""
    split = drawings(DATA)
    recipe = read_recipe("lora/questions", [("seed", seed), ("train.epochs", 5), ("train.lr", 1e-3)], DATA)
    model = build(recipe, split.class_names, adapt.load_backbone("mini-vlm"))
    stream, chosen = Random(seed), list[Item]()
    for kind in KINDS:
        known = [item for item in split.train if _asks(item) and item.answer == kind]
        chosen += stream.sample(known, animals if kind == KINDS[0] else others)
    fit_plan(plan_of(recipe, model, replace(split, train=tuple(chosen), val=(), test=())), None)
    return cast("ChatModel", model.eval())


def _asks(item: Item) -> bool:
    return item.label.columns["question"] == GROUP


def _seen(items: Sequence[Item]) -> list[list[Any]]:
    return [[open_image(item.path)] for item in items]


def chosen(model: ChatModel, items: Sequence[Item]) -> Tensor:
    """Return which questions `(n,)` are answered right by a choice among the eight kinds."""
    logits = model.choose(_seen(items), [GROUP] * len(items), KINDS)
    right = torch.tensor([KINDS.index(item.answer) for item in items])
    return logits.argmax(-1).cpu().eq(right).double()


def said(model: ChatModel, items: Sequence[Item]) -> Tensor:
    """Return which questions `(n,)` are answered right in words."""
    answers = model.generate(_seen(items), [GROUP] * len(items), max_new_tokens=4)
    return torch.tensor([answer.text == item.answer for answer, item in zip(answers, items, strict=True)]).double()
