"""Where a thing is that has no name, by an example of it (IPLoc): mean IoU, by its own example or by another thing's.

The names of the test say nothing, so that only the example can: a model that does not look at it answers both alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from torch import Tensor

import adapt
from adapt.data import Item
from adapt.data.item import labels_of
from adapt.evaluation.boxes import BoxScores
from adapt.evaluation.evaluate import evaluate
from adapt.recipe import read_recipe
from adapt.tasks.boxes import BoxLabel
from adapt.training.run_recipe import run_recipe
from benchmarks.drawings import paired, per_cent, row_of
from benchmarks.measure import Row

PLAIN, SEEDS = "emoji-boxes", (1, 2, 3)
DATA = f"examples:1:{PLAIN}"
OF_SCENES = ("train.epochs=4", "train.lr=0.003")  # the recipe's settings for emoji-boxes


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the mean IoU over seeds by what a scene shows, and how much an example of another thing takes from it."""
    items = adapt.data.load(DATA).test
    asked = [items, _misled(items)]
    merits: list[list[Tensor]] = [[] for _ in asked]
    with TemporaryDirectory() as folder:
        for seed in SEEDS:
            progress(f"seed {seed}")
            run = Path(folder) / str(seed)
            run_recipe(read_recipe("lora/boxes", [f"seed={seed}", *OF_SCENES], DATA), run)
            model = adapt.load(run / "adapter.safetensors")
            for own, each in zip(merits, asked, strict=True):
                own.append(torch.tensor(cast("BoxScores", evaluate(model, each)).merits, dtype=torch.double))
    scenes = [*_scenes(items)]
    for scene in ("all", *sorted({*scenes})):
        places = [place for place, each in enumerate(scenes) if scene in ("all", each)]
        right, misled = ([each[places] for each in own] for own in merits)
        cells = {"own example": per_cent(right), "another thing's": per_cent(misled)}
        yield row_of(scene, cells | {"difference": paired(right, misled, [items[place] for place in places])})


def _scenes(items: Sequence[Item]) -> Iterator[str]:
    questions = Counter(item.path for item in items)
    for item, label in zip(items, labels_of(items, BoxLabel), strict=True):
        alone = "one thing" if len(label.boxes) == 1 else "copies of a thing"
        yield "one of two things" if questions[item.path] > 1 else alone


def _misled(items: Sequence[Item]) -> list[Item]:
    """Return the questions, each after the example of the nearest later question about a thing of another name."""
    names = [label.name for label in labels_of(adapt.data.load(PLAIN).test, BoxLabel)]
    labels, misled = labels_of(items, BoxLabel), []
    for place, (item, own) in enumerate(zip(items, labels, strict=True)):
        order = [*range(place, len(items)), *range(place)]
        other = next(each for each in order if names[each] != names[place])
        asked = Item.of(path=item.path, boxes=(own.name, own.boxes, own.size, *labels[other].examples))
        misled.append(replace(item, paths=(item.path, *items[other].paths[1:]), label=asked.label))
    return misled
