"""Boxes of things in images by a classifier that never learned any: windows of an image about which it is sure.

Every square window of a few sizes is classified as an image by itself; of windows that overlap, the surest one is kept
(greedy non-maximum suppression, torchvision's), and a window that lies mostly inside a surer one is dropped, as a part
of a thing looks like the thing.

No paper: it is the sliding window of the time before learned
proposals, with the classifier at hand. What it is not: a detector. Boxes are squares of a few sizes, things that touch
become one, and the classifier has seen no background, so that it may be sure of a thing where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

import torch

from adapt.backbones.box_texts import Edges, NamedBox
from adapt.models.prediction import Prediction, Query

SIZES = (1.0, 0.7, 0.5, 0.35, 0.25)  # sides of windows, as shares of the image's shorter side
STEP = 0.25  # of a window's side, to the next window
ALIKE = 0.3  # intersection over union of two windows, above which the less sure one is dropped
PART = 0.6  # of a window's area inside a surer one, above which it is dropped
SURE = 0.9  # the least probability of a box, unless another one is asked for


def windows(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield square windows of an image in pixels: left, upper, right and lower edge, the largest windows first."""
    for side, (across, down) in _steps(width, height):
        lefts, uppers = (
            [round((length - side) * step / max(1, steps)) for step in range(steps + 1)]
            for length, steps in ((width, across), (height, down))
        )
        yield from ((left, upper, left + side, upper + side) for upper in uppers for left in lefts)


def count(width: int, height: int) -> int:
    """Return the number of an image's windows."""
    return sum((across + 1) * (down + 1) for _, (across, down) in _steps(width, height))


def _steps(width: int, height: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the side of the windows of each size, and the steps between the first and the last one, across and down.

    They are even, at most about `STEP` long but a pixel or more, and the last window is at the end.
    """
    for side in dict.fromkeys(max(1, round(share * min(width, height))) for share in SIZES):
        yield side, [ceil((length - side) / max(1, STEP * side)) for length in (width, height)]


def of_each(query: Query) -> Query:
    """Return what is asked about each window by a query for boxes."""
    return replace(query, boxes=False, threshold=SURE if query.threshold is None else query.threshold)


def found(places: Sequence[Edges], answers: Sequence[Prediction], own: Query) -> Prediction:
    """Return the prediction of the surest of an image's windows, with the boxes of those above the threshold.

    `own` is what was asked about each window. Of several labels an image, windows are dropped for surer ones of their
    class alone.
    """
    from torchvision.ops import batched_nms

    several = answers[0].class_names is not None
    named = [
        NamedBox(name, place, probability)
        for place, answer in zip(places, answers, strict=True)
        for name, probability in answer.top[: None if several else 1]
        if probability >= (own.threshold or 0.0)
    ]
    numbers = {box.name: at * several for at, box in enumerate(named)}  # each name's, or one for all
    groups = [numbers[box.name] for box in named]
    edges = torch.tensor([box.edges for box in named], dtype=torch.float).view(-1, 4)
    order = batched_nms(edges, torch.tensor([box.probability for box in named]), torch.tensor(groups), ALIKE)
    kept = list[int]()
    for at in order.tolist():
        alike = (other for other in kept if groups[other] == groups[at])
        if all(_inside(named[at].edges, named[other].edges) < PART for other in alike):
            kept.append(at)
    surest = max(answers, key=lambda answer: answer.probability)
    return replace(surest, boxes=tuple(named[at] for at in kept), sighting=None)  # a watch compares whole images


def _inside(box: Edges, other: Edges) -> float:
    """Return the share of a box's area that lies inside another one."""
    sides = [max(0.0, min(box[at + 2], other[at + 2]) - max(box[at], other[at])) for at in (0, 1)]
    return sides[0] * sides[1] / ((box[2] - box[0]) * (box[3] - box[1]))
