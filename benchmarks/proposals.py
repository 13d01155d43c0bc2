"""Regions of scenes, some of which show nothing: known and new things by prompts that know a background (DetPro)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.box_texts import Edges
from adapt.data import Item, Split
from adapt.data.decoding.files import region
from adapt.data.emoji.scenes import SIDE
from adapt.evaluation.boxes import overlaps
from adapt.evaluation.inference import Inference
from adapt.evaluation.maps import auroc
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from adapt.tasks.boxes import BoxLabel
from benchmarks.drawings import SEEN, backbone, drawings, per_cent, row_of, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
NEW = 17  # of the 51 things, which only the test has
SHOTS, NOTHING = 16, 400  # regions of a known thing, and of no thing, that are learned from
THING, APART = 0.5, 0.2  # the least overlap of a region with its thing, and the largest of one that shows nothing
LEAST = 14  # pixels of a region's side
BACKGROUND = "background"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "CoOp on things alone": ("coop", {}),
    "DetPro, with background": ("detpro", {"method.background": BACKGROUND}),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the accuracy of 51 names on known and on new things, and how well things are told from background."""
    figures = defaultdict[str, list[tuple[Tensor, Tensor, Tensor]]](list)
    for seed in SEEDS:
        names, train, test = _regions(seed)
        known = names[NEW:]
        figures["zero-shot"].append(_measured(adapt.wrap(backbone(), ZeroShot(), names), names, test))
        for way, (recipe, settings) in WAYS.items():
            progress(f"{way}, seed {seed}")
            classes = (*known, BACKGROUND) if settings else known
            split = Split("proposals", classes, tuple(item for item in train if item.answer in classes), (), ())
            model = trained(read_recipe(recipe, [("seed", seed), *settings.items()], SEEN), split)
            whole = model.with_classes((*names, BACKGROUND) if settings else names)
            figures[way].append(_measured(whole, names, test))
    for way, measured in figures.items():
        known_right, new_right, areas = zip(*measured, strict=True)
        area = torch.stack(areas)
        cells = {"known": f"known {per_cent(known_right)}", "new": f"new {per_cent(new_right)}"}
        yield row_of(way, cells | {"things": f"area {float(area.mean()):.3f} ± {float(area.std(correction=0)):.3f}"})


def _regions(seed: int) -> tuple[tuple[str, ...], list[Item], list[Item]]:
    """Return all names, of which the first are new, and regions of the training and of the test scenes."""
    stream, split = Random(seed), drawings("emoji-boxes")
    names = sorted({label.name for item in split.items() for label in [item.label] if isinstance(label, BoxLabel)})
    stream.shuffle(names)
    known = _proposed(split.train, stream)
    taken = [item for name in names[NEW:] for item in known[name][:SHOTS]] + known[BACKGROUND][:NOTHING]
    return tuple(names), taken, [item for items in _proposed(split.test, stream).values() for item in items]


def _proposed(items: Sequence[Item], stream: Random) -> dict[str, list[Item]]:
    """Return for each thing a region that overlaps it, and for each scene one of nothing, in random order by name."""
    boxes, proposed = defaultdict[str, list[tuple[str, Edges]]](list), defaultdict[str, list[Item]](list)
    for item in items:
        assert isinstance(item.label, BoxLabel)
        boxes[item.path] += [(item.label.name, box) for box in item.label.boxes]
    for path in stream.sample([*boxes], len(boxes)):
        every = [box for _, box in boxes[path]]
        for name, box in boxes[path]:
            found = _window(stream, [box], THING, 1.0)
            proposed[name] += [Item.of(path=region(path, each), group=path, label=name) for each in found]
        found = _window(stream, every, 0.0, APART)
        proposed[BACKGROUND] += [Item.of(path=region(path, each), group=path, label=BACKGROUND) for each in found]
    return proposed


def _window(stream: Random, boxes: Sequence[Edges], least: float, most: float) -> list[Edges]:
    """Return a random square window that overlaps one of the boxes by at least and at most so much, or none."""
    for _ in range(200):
        side = stream.randint(LEAST, SIDE)
        left, top = (stream.randint(0, SIDE - side) for _ in range(2))
        window = (left, top, left + side, top + side)
        if least <= float(overlaps([window], boxes).amax()) <= most:
            return [window]
    return []


def _measured(model: AdaptedModel, names: Sequence[str], test: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Return which known and which new things get their name of all, and the area of things against background."""
    logits = torch.cat(list(Inference(workers=0).logits(model.eval(), test)))[:, : len(names)].double()
    answers = [item.answer for item in test]
    right = torch.tensor([names[place] == answer for place, answer in zip(logits.argmax(-1), answers, strict=True)])
    new, thing = (torch.tensor([answer in of for answer in answers]) for of in (names[:NEW], names))
    area = auroc(logits.log_softmax(-1).amax(-1), thing)
    return right[thing & ~new].double(), right[new].double(), torch.tensor(area)
