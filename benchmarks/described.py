"""Descriptions of training images as a second target of a vision tower (GPT4Image), by which text they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt.data import Split
from adapt.data.decoding.images import open_image
from adapt.models.unadapted import unadapted
from adapt.recipe import read_recipe
from adapt.tasks.classes import Class
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import SEEN, drawings, paired, per_cent, right, row_of
from benchmarks.measure import Row

SEEDS, SHOTS = (1, 2, 3), (4, 16)
# as lora/vision learns on these drawings
_TRAINING: dict[str, Any] = {
    "backbone": "vision:mini-clip",
    "method.reader": "mini-clip",
    "train.iterations_per_shot": 12,
    "train.lr": 0.002,
    "train.augment": "none",
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report test accuracies by the descriptions that the image half of the bundled CLIP learned from."""
    split = drawings(SEEN)
    progress("descriptions")
    told = _descriptions(split)
    names = {item.path: f"a drawing of {item.answer}" for item in split.train}
    changed = dict(zip(told, Random(0).sample([*told.values()], len(told)), strict=True))
    texts = {"descriptions": told, "those of other images": changed, "names of the classes": names}
    for shots in SHOTS:
        plain: list[Tensor] = []
        for case, of_images in {"labels alone": {}, **texts}.items():
            rights = list[Tensor]()
            for seed in SEEDS:
                progress(f"{shots} shots, {case}, seed {seed}")
                rights.append(_right(split, of_images, shots, seed))
            plain = plain or rights
            gain = f", {paired(rights, plain, split.test)}" if of_images else ""
            yield row_of(f"{shots} shots, {case}", {"accuracy": f"{per_cent(rights)} %{gain}"})


def _descriptions(split: Split) -> dict[str, str]:
    """Return what `mini-vlm` says of each training image."""
    model: Any = unadapted(adapt.load_backbone("mini-vlm"))
    said = dict[str, str]()
    paths = sorted({item.path for item in split.train})
    for start in range(0, len(paths), 32):
        own = paths[start : start + 32]
        images = [[open_image(path)] for path in own]
        answers = model.generate(images, ["Describe the image."] * len(own), max_new_tokens=24)
        said |= {path: answer.text.strip() for path, answer in zip(own, answers, strict=True)}
    return said


def _right(split: Split, texts: Mapping[str, str], shots: int, seed: int) -> Tensor:
    name, changes = ("gpt4image", _TRAINING) if texts else ("lora/vision", {})
    recipe = read_recipe(name, [("seed", seed), ("data.shots", shots), *changes.items()], SEEN)
    train = tuple(replace(item, label=Class(item.answer, caption=texts.get(item.path, ""))) for item in split.train)
    model = build(recipe, split.class_names, adapt.load_backbone("vision:mini-clip"))
    fit_plan(plan_of(recipe, model, replace(split, train=train).few_shot(shots, seed)), None)
    with torch.no_grad():
        return right(model.eval(), split.test)
