"""Triplets of images: an anchor, one that is nearer to it, and one that is farther."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapt.data import Item
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores, scored
from adapt.methods.base import ImageStep, Step, Terms
from adapt.tasks import Label, Task

MARGIN = 0.2
WORDS = ("farther", "nearer")


@dataclass(frozen=True)
class Order(Label):
    """The order of the images says it all."""

    @property
    def words(self) -> str:
        return "nearer"


class Triplets(Task):
    """Images of which the second is nearer to the first than the third is."""

    name = "triplets"
    title = "an image, one nearer to it, and one farther"
    label_type = Order
    needs = frozenset({"anchor", "nearer", "farther"})
    images = ("anchor", "nearer", "farther")
    items_are = "triplets of images"
    noun = "triplets"
    classes_are = ""
    learns_from_features = False

    def read(self, cells: Mapping[str, Any], where: str) -> Order:
        return Order()

    def step(self, model: Any, items: Sequence[Item], inputs: Any) -> Step:
        return ImageStep(model, torch.cat(inputs)).of(self, items)

    def loss(self, step: Any) -> Terms:
        return {"triplet": (MARGIN - nearer_by(step)).clamp_min(0).mean()}

    def right(self, step: Any) -> Tensor:
        return nearer_by(step) > 0

    def score(self, model: Any, items: Sequence[Item], inference: Inference) -> Scores:
        return scored(items, inference.of_batches(model, items, _decided))


def nearer_by(step: ImageStep) -> Tensor:
    """By how much the anchors' cosines with the nearer images are above those with the farther ones `(b,)`."""
    anchor, nearer, farther = step.features.float().chunk(3)
    return (anchor * nearer).sum(-1) - (anchor * farther).sum(-1)


def _decided(step: ImageStep) -> tuple[list[str], list[float]]:
    apart = nearer_by(step).cpu()
    return [WORDS[int(each > 0)] for each in apart], torch.maximum(apart.sigmoid(), (-apart).sigmoid()).tolist()
