"""Items of four drawings in four styles, one of which may be of no use: their mean, ABMIL, and ABMIL by view."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

import adapt
from adapt.common.grouping import grouped
from adapt.data import Item, Split
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from benchmarks.drawings import backbone, drawings, per_cent, right, row_of, trained
from benchmarks.measure import Row

SEEDS, USELESS = (1, 2, 3), "twemoji"
COUNTS = {"train": 16, "test": 40}  # items of each class


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield accuracies where one style has its drawings, noise, or drawings of any class, and the learned weights."""
    with TemporaryDirectory() as folder:
        noise = [f"{folder}/{number}.png" for number in range(64)]
        for path in noise:
            Image.effect_noise((64, 64), 90).convert("RGB").save(Path(path))
        anything = [item.path for item in drawings("emoji").items() if item.domain == USELESS]
        for case, others in {"its drawings": [], "noise": noise, "drawings of any class": anything}.items():
            splits = [_in_items(random.Random(seed), others) for seed in SEEDS]
            frozen = adapt.wrap(backbone(), ZeroShot(splits[0].template), splits[0].class_names)
            cells = {"mean": per_cent([right(frozen, split.test) for split in splits])}
            models: list[Any] = []
            for name, own in {"abmil": {}, "by view": {"method.by": "view", "train.lr": 0.05}}.items():
                progress(f"{case}: {name}")
                changes = {"backbone": "mini-clip", "data.shots": None, "train.epochs": 50, **own}
                recipes = [read_recipe("abmil", (changes | {"seed": seed}).items(), "emoji-items") for seed in SEEDS]
                models = [trained(recipe, split) for recipe, split in zip(recipes, splits, strict=True)]
                cells[name] = per_cent([right(*each) for each in zip(models, (split.test for split in splits))])
            useless = models[0].method.config.view_names.index(USELESS)
            cells["weight"] = per_cent([model.method.view_scores.softmax(0)[useless] for model in models])
            yield row_of(case, cells)


def _in_items(draw: random.Random, others: Sequence[str]) -> Split:
    """Return items of a drawing of a class in each style, with one of `others`, if any, in place of one style."""
    parts = {part: list[Item]() for part in COUNTS}
    for part, count in COUNTS.items():
        for own in grouped((item.answer, item) for item in getattr(drawings("emoji"), part)).values():
            paths = grouped((item.domain, item.path) for item in own) | ({USELESS: [*others]} if others else {})
            views = tuple(sorted(paths))
            for _ in range(count):
                drawn = tuple(draw.choice(paths[view]) for view in views)
                parts[part].append(replace(own[0], paths=drawn, group="", view_names=views))
    return replace(drawings("emoji"), train=tuple(parts["train"]), val=(), test=tuple(parts["test"]))
