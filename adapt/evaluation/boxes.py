"""Scores of boxes: overlap, F1 by greedy matching, and COCO's average precision.

Sources: average precision as pycocotools computes it for boxes (Lin et al., Microsoft COCO, ECCV 2014), without crowds
and ranges of area; the sum of overlaps over the larger number of boxes as in Visual-RFT's reward (Liu et al., ICCV
2025), without its threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from adapt.backbones.box_texts import Edges
from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.evaluation import intervals
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import Figure, QuestionScores

HALF = 0.5
THRESHOLDS = tuple(0.5 + step / 20 for step in range(10))  # COCO's, 0.50 to 0.95
_RECALLS = torch.linspace(0, 1, 101, dtype=torch.double)
_MOST = 100  # boxes of a class in an image that count
_ROUNDING = 1e-10


def overlaps(boxes: Sequence[Edges], others: Sequence[Edges]) -> Tensor:
    """Return the intersection over union `(n, m)` of boxes and others, 0 for boxes without an area."""
    from torchvision.ops import box_iou

    return box_iou(*(torch.tensor([*each], dtype=torch.double).view(-1, 4) for each in (boxes, others))).nan_to_num()


def matched(shared: Tensor, least: float = 0.0) -> list[float]:
    """Return the overlap of each found box with the true box that it gets, or 0 for none, from overlaps `(n, m)`.

    In their order, found boxes get the free true box that they overlap most, if it is by at least `least`.
    """
    free, gained = shared.clone(), list[float]()
    for row in free:
        best = int(row.argmax()) if len(row) else -1
        gained.append(float(row[best]) if len(row) and row[best] >= max(least, _ROUNDING) else 0.0)
        if gained[-1]:
            free[:, best] = 0
    return gained


def average_precision(images: Sequence[tuple[Sequence[Edges], Sequence[Edges], Sequence[float]]]) -> Tensor:
    """Return COCO's average precision of a class at each of `THRESHOLDS`, from each image's true and found boxes.

    The latter have scores. Some image must have a true box.
    """
    scores, hits = list[float](), [torch.zeros(0, len(THRESHOLDS), dtype=torch.bool)]
    for true, found, sure in images:
        order = sorted(range(len(found)), key=lambda place: -sure[place])[:_MOST]
        shared = overlaps([found[place] for place in order], true)
        scores += [sure[place] for place in order]
        hits.append(torch.tensor([matched(shared, threshold - _ROUNDING) for threshold in THRESHOLDS]).T > 0)
    right = torch.cat(hits)[torch.tensor(scores, dtype=torch.double).argsort(descending=True, stable=True)].cumsum(0)
    recall = right / sum(len(true) for true, _, _ in images)
    precision = right / torch.arange(1, len(right) + 1, dtype=torch.double)[:, None]
    best = precision.flip(0).cummax(0).values.flip(0)  # at this recall or a higher one
    places = torch.searchsorted(recall.double().T.contiguous(), _RECALLS.expand(len(THRESHOLDS), -1).contiguous())
    return torch.cat([best, best.new_zeros(1, len(THRESHOLDS))]).T.gather(1, places).mean(1)


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
    def _average_precision(self) -> Tensor:
        """The means over names `(thresholds,)`; the score of a box is the probability of the answer that it is in."""
        asked = zip(self.questions, self.boxes, self.found, self.confidence, strict=True)
        of_name = grouped((name, (true, found or (), [sure] * len(found or ()))) for name, true, found, sure in asked)
        each = [average_precision(images) for images in of_name.values() if any(true for true, _, _ in images)]
        return torch.stack(each).mean(0) if each else torch.zeros(len(THRESHOLDS))

    def figures(self) -> JsonObject:
        hits, found, true = sum(self._hits), sum(len(each or ()) for each in self.found), sum(map(len, self.boxes))
        return super().figures() | {
            "mean_iou": float(self.merits.mean()),
            "readable": sum(each is not None for each in self.found) / self.images,
            "precision": hits / found if found else float(not true),
            "recall": hits / true if true else 1.0,
            "f1": 2 * hits / (found + true) if found + true else 1.0,
            "average_precision": float(self._average_precision.mean()),
            "average_precision_50": float(self._average_precision[0]),
        }

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
