"""Scores of boxes: overlap, F1 by greedy matching, and COCO's average precision.

Sources: average precision and recall as pycocotools computes them for boxes (Lin et al., Microsoft COCO, ECCV 2014),
where the area of a thing is that of its box, not of its outline; the sum of overlaps over the larger number of boxes as
in Visual-RFT's reward (Liu et al., ICCV 2025), without its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.box_texts import Edges
from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.evaluation import intervals
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import Figure, QuestionScores

HALF = 0.5
THRESHOLDS = tuple(0.5 + step / 20 for step in range(10))  # COCO's, 0.50 to 0.95
AREAS = {"": (0, math.inf), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, math.inf)}  # COCO's
_RECALLS = torch.linspace(0, 1, 101, dtype=torch.double)
MOST = 100  # boxes of a class in an image that count
_ROUNDING = 1e-10


def overlaps(boxes: Sequence[Edges], others: Sequence[Edges]) -> Tensor:
    """Return the intersection over union `(n, m)` of boxes and others, 0 for boxes without an area."""
    from torchvision.ops import box_iou

    return box_iou(*(torch.tensor([*each], dtype=torch.double).view(-1, 4) for each in (boxes, others))).nan_to_num()


def _areas(boxes: Sequence[Edges]) -> Tensor:
    return torch.tensor([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes], dtype=torch.double)


def _inside(boxes: Sequence[Edges], crowds: Sequence[Edges]) -> Tensor:
    """Return the share `(n, m)` of each box that is inside of each box around a crowd."""
    shared = overlaps(boxes, crowds)
    return (shared / (1 + shared) * (1 + _areas(crowds) / _areas(boxes)[:, None])).nan_to_num()


def matched(shared: Tensor, least: float = 0.0, crowds: int = 0) -> list[float]:
    """Return the overlap of each found box with the true box that it gets, or 0 for none, from overlaps `(n, m)`.

    In their order, found boxes get the free true box that they overlap most, if it is by at least `least`. The last
    `crowds` columns are of boxes around crowds, which stay free.
    """
    free, gained = shared.clone(), list[float]()
    for row in free:
        best = int(row.argmax()) if len(row) else -1
        gained.append(float(row[best]) if len(row) and row[best] >= max(least, _ROUNDING) else 0.0)
        if gained[-1] and best < len(row) - crowds:
            free[:, best] = 0
    return gained


Judged = tuple[Sequence[Edges], Sequence[Edges], Sequence[float], Sequence[Edges]]


def average_precision(images: Sequence[Judged], areas: tuple[float, float] = AREAS[""]) -> Tensor:
    """Return COCO's average precision of a class and its recall at all `THRESHOLDS`, `(2, n)`; NaN if no box counts.

    An image has true boxes, found ones, the scores of these, and boxes around crowds. True boxes count whose area is
    between `areas`, in square pixels. A found box without one is wrong, unless it has another true box, is mostly in a
    crowd, or has an area that does not count.
    """
    known, scores, verdicts = 0, [math.inf], [torch.zeros(2, 1, len(THRESHOLDS), dtype=torch.bool)]  # before the first
    for true, found, sure, crowds in images:
        order = sorted(range(len(found)), key=lambda place: -sure[place])[:MOST]
        boxes = [found[place] for place in order]
        counts, own = ((areas[0] <= each) & (each <= areas[1]) for each in (_areas(true), _areas(boxes)))
        shared, known = overlaps(boxes, true), known + int(counts.sum())
        others = torch.cat([shared[:, ~counts], _inside(boxes, crowds)], 1)
        for_each = [(threshold - _ROUNDING, place) for place, threshold in enumerate(THRESHOLDS)]
        right = torch.tensor([matched(shared[:, counts], least) for least, _ in for_each]).T > 0
        left = [matched(others * ~right[:, [place]], least, len(crowds)) for least, place in for_each]
        verdicts.append(torch.stack([right, ~right & (torch.tensor(left).T == 0) & own[:, None]]))
        scores += [sure[place] for place in order]
    if not known:
        return torch.full((2, len(THRESHOLDS)), math.nan, dtype=torch.double)
    ranks = torch.tensor(scores, dtype=torch.double).argsort(descending=True, stable=True)
    right, wrong = torch.cat(verdicts, 1)[:, ranks].cumsum(1).double()
    recall, precision = right / known, right / (right + wrong).clamp_min(1)
    best = precision.flip(0).cummax(0).values.flip(0)  # at this recall or a higher one
    places = torch.searchsorted(recall.T.contiguous(), _RECALLS.expand(len(THRESHOLDS), -1).contiguous())
    return torch.stack([F.pad(best.T, (0, 1)).gather(1, places).mean(1), recall[-1]])


@dataclass(frozen=True)
class BoxScores(QuestionScores):
    """Scores of answered boxes; `found` is None for an answer that cannot be read, and `questions` are the names asked.

    An answer is right if its boxes and the true ones overlap in pairs by at least a half.
    """

    main: ClassVar[str] = "mean_iou"
    main_title: ClassVar[str] = "mean IoU"
    compared_by: ClassVar[Figure] = Figure(main, main_title)
    has_classes: ClassVar[bool] = False

    boxes: tuple[tuple[Edges, ...], ...] = ()
    crowds: tuple[tuple[Edges, ...], ...] = ()
    found: tuple[tuple[Edges, ...] | None, ...] = ()

    @cached_property
    def _overlaps(self) -> list[Tensor]:
        return [overlaps(found or (), true) for found, true in zip(self.found, self.boxes, strict=True)]

    @cached_property
    def _hits(self) -> list[int]:
        """How many boxes of each answer overlap a true one by a half."""
        return [sum(each > 0 for each in matched(shared, HALF)) for shared in self._overlaps]

    @property
    def right(self) -> tuple[bool, ...]:
        pairs = zip(self.found, self._overlaps, self._hits, strict=True)
        return tuple(found is not None and hits == max(shared.shape) for found, shared, hits in pairs)

    @cached_property
    def merits(self) -> Tensor:
        """The sum of overlaps over the larger number of boxes: of one box, its intersection over union."""
        pairs = zip(self.found, self._overlaps, strict=True)
        each = [(found, sum(matched(shared)), max(shared.shape)) for found, shared in pairs]
        return torch.tensor([0.0 if found is None else gained / n if n else 1.0 for found, gained, n in each])

    @cached_property
    def _of_coco(self) -> JsonObject:
        """Means over names and thresholds; the score of a box is the probability of the answer that it is in."""
        crowds = self.crowds or ((),) * len(self.boxes)
        asked = zip(self.questions, self.boxes, self.found, self.confidence, crowds, strict=True)
        of_name = grouped((name, (true, hit or (), [sure] * len(hit or ()), of)) for name, true, hit, sure, of in asked)
        figures: JsonObject = {}
        for size, areas in AREAS.items():
            found = torch.stack([average_precision(images, areas) for images in of_name.values()]).nanmean(0)
            if size and found.isnan().all():
                continue  # no true box is of this size
            for name, values in zip(("average_precision", "average_recall"), found.nan_to_num(), strict=True):
                figures[f"{name}{size}"] = float(values.mean())
                figures.setdefault(f"{name}_50", float(values[0]))
        return figures

    def figures(self) -> JsonObject:
        hits, found, true = sum(self._hits), sum(len(each or ()) for each in self.found), sum(map(len, self.boxes))
        own = {
            "mean_iou": float(self.merits.mean()),
            "readable": sum(each is not None for each in self.found) / self.images,
            "precision": hits / found if found else float(not true),
            "recall": hits / true if true else 1.0,
            "f1": 2 * hits / (found + true) if found + true else 1.0,
        }
        return super().figures() | own | self._of_coco

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        found = intervals.of_mean(self.merits, self.kept_with)
        return super().intervals | ({"mean_iou": found.within(0, 1)} if found else {})

    def rows(self) -> list[dict[str, object]]:
        return [row | {"iou": round(float(iou), 6)} for row, iou in zip(super().rows(), self.merits, strict=True)]

    def summary(self) -> dict[str, str]:
        return {name: self.share(name) for name in ("f1", "precision", "recall", "readable")}

    def lines(self, of: str) -> Iterator[str]:
        at_half = ", ".join(self.share(name, name) for name in ("precision", "recall"))
        yield f"{self.share('mean_iou', 'mean IoU')} of {of}, {self.share('readable', 'readable')}"
        yield f"at IoU 0.5: {self.share('f1', 'F1')}, {at_half}, {self.share('accuracy', 'all right')}"
