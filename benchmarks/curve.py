"""How often the learning curve says a number of labels, and how often the truth lies within half to twice of it.

35 % of a set's images, by concept on the drawings, are tested; a draw is so many images a class of the others. A
classifier without steps (ridge regression on class indicators) learns from cached features. The truth is the number of
images a class of other concepts, added at random to those of the draw, with which the mean accuracy over eight
additions reaches the target. It is measured up to twice the images of the draw; where that does not reach the target,
the number counts as wrong.

    python -m benchmarks curve
    python -m benchmarks.curve docs/pictures/learning_curve.png  # the curve of a draw of the drawings
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

import adapt
from adapt.choosing.compare import HALVINGS, TRIALS
from adapt.data.split import Split
from adapt.evaluation.learning_curve import LearningCurve
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from benchmarks.measure import Row

SETS = ("emoji", "surfaces", "faces", "solar kinds", "solar defects", "solar grades", "cloth")
BACKBONES = ("mini-clip", "efficientnet-lite0")
SHOTS, DRAWS, TESTED, RIDGE = (4, 8, 16, 32, 64), 24, 0.35, 0.1
ADDITIONS, SHARES = 8, (0.25, 0.5, 1.0, 1.5, 2.0)  # of the images of a draw, that are added to them
ENOUGH = 2.5  # times the images of a draw, that the usual class has outside the test images
DRAWN = 11  # the draw of the picture, which says a number
ByClass = list[list[int]]


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each set of images, backbone and number of images a class."""
    from benchmarks import photographs

    torch.set_num_threads(1)
    for name in SETS:
        source = name if name == "emoji" else str(photographs.listing(name, 1))
        split = adapt.data.load(source, root=None if name == "emoji" else "/")
        for backbone in BACKBONES:
            progress(f"{name}, {backbone}")
            features = _features(split, backbone)
            for shots in SHOTS:
                drawn = [each for seed in range(DRAWS) if (each := _draw(split, features, shots, seed))]
                if drawn:
                    said = [each for each in drawn if each["labels"]]
                    right = sum(
                        each["truth"] is not None and 0.5 <= each["labels"] / each["truth"] <= 2 for each in said
                    )
                    yield {
                        "case": f"{name}, {backbone}, {shots} images a class", "draws": drawn, "said": len(said),
                        "right": right,
                        "text": f"a number in {len(said)} of {len(drawn)} draws, {right} right within a factor of two",
                    }  # fmt: skip


def _features(split: Split, backbone: str) -> Tensor:
    model = unadapted(adapt.load_backbone(backbone, "cpu"), split.class_names)
    assert isinstance(model, ImageModel)
    return item_features(model, list(split.items()), workers=0).double()


def _draw(split: Split, features: Tensor, shots: int, seed: int) -> Row | None:
    """Return the curve of a draw and the true number of labels, or None if the set has too few images."""
    draw, items = random.Random(seed), list(split.items())
    groups = sorted({item.kept_with for item in items})
    tested = set(draw.sample(groups, int(TESTED * len(groups))))
    labels = split.task.numbers(items, split.class_names)
    pool: ByClass = [[] for _ in split.class_names]
    for place in draw.sample(range(len(items)), len(items)):
        if items[place].kept_with not in tested:
            pool[labels[place]].append(place)
    if median(map(len, pool)) < ENOUGH * shots:
        return None
    test = [place for place, item in enumerate(items) if item.kept_with in tested]
    accuracy = partial(_accuracy, features, labels, test)
    few = [own[:shots] for own in pool]
    known = {items[place].kept_with for own in few for place in own}
    others = [[place for place in own if items[place].kept_with not in known] for own in pool]
    curve = _curve(few, accuracy, draw, sum(map(len, few)) / len(known))
    truth = _truth(few, others, curve, accuracy, draw) if curve.labels else None
    return asdict(curve) | {"shots": shots, "seed": seed, "truth": truth}


def _curve(own: ByClass, accuracy: Callable[[ByClass], float], draw: random.Random, per_group: float) -> LearningCurve:
    """Return the learning curve as `recommend` measures it."""
    table, whole, parts = list[list[float]](), accuracy(own), [own]
    for _ in range(TRIALS):
        parts = [[draw.sample(each, len(each)) for each in own]]
        while len(parts) <= HALVINGS and max(map(len, parts[-1])) > 1:
            parts.append([each[: -(-len(each) // 2)] for each in parts[-1]])
        table.append([*map(accuracy, parts[:0:-1]), whole])
    return LearningCurve.of([sum(map(len, part)) / len(own) for part in parts[::-1]], np.array(table), None, per_group)


def _truth(
    few: ByClass, others: ByClass, curve: LearningCurve, accuracy: Callable[[ByClass], float], draw: random.Random
) -> float | None:
    """Return how many more images a class reach the target on average, by interpolation, or None if none do."""
    added, reached = [0.0], [curve.points[-1].accuracy]
    for share in SHARES:
        several = [
            [
                own + draw.sample(new, min(round(share * len(own)), len(new)))
                for own, new in zip(few, others, strict=True)
            ]
            for _ in range(ADDITIONS)
        ]
        added.append(sum(map(len, several[0])) / len(few) - curve.points[-1].images)
        reached.append(max(reached[-1] + 1e-9, float(np.mean([*map(accuracy, several)]))))
    return float(np.interp(curve.target, reached, added)) if reached[-1] >= curve.target else None


def _accuracy(features: Tensor, labels: Tensor, test: Sequence[int], train: ByClass) -> float:
    """Return the accuracy of ridge regression on centred class indicators, every class with equal weight."""
    places = [place for own in train for place in own]
    centre = features[places].mean(0)
    x, y = features[places] - centre, torch.nn.functional.one_hot(labels[places], len(train)).double()
    y = y / y.sum(0)
    kernel = x @ x.T
    kernel.diagonal().add_(RIDGE * kernel.diagonal().mean() + 1e-6)
    weights = x.T @ torch.linalg.solve(kernel, y - y.mean(1, keepdim=True))
    return float(((features[test] - centre) @ weights).argmax(1).eq(labels[test]).double().mean())


def draw_to(file: str) -> None:
    """Draw the learning curve of one draw of four drawings of each kind to `file`."""
    from adapt.protocols.plots import learning_curve

    split = adapt.data.load("emoji")
    drawn = _draw(split, _features(split, BACKBONES[0]), 4, DRAWN)
    learning_curve(TypeAdapter(LearningCurve).validate_python(drawn)).savefig(file, dpi=130)


if __name__ == "__main__":
    draw_to(sys.argv[1])
