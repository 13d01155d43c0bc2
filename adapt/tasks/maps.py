"""Anomaly localisation: images, some with a defect, and masks of the defects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.data.item import Cell, Item, NamedLabel, filled, optional
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from adapt.models.base import Adapted


@dataclass(frozen=True)
class Defect(NamedLabel):
    """A class name, and the path of a `mask` image that is bright at defects, or "" if there is no mask."""

    mask: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.mask,) if self.mask else ()

    def identity(self, root: str) -> dict[str, object]:
        return super().identity(root) | {"mask": self.mask.removeprefix(root).replace(os.sep, "/").lstrip("/")}


class Maps(Task):
    """The task of anomaly localisation, in which images have a class, and masks that mark defects."""

    name = "maps"
    title = "one class per image, and masks of what is abnormal"
    example = "emoji-defects"
    backbones = frozenset({"dual encoder", "vision encoder"})
    items_are = "images with one class each, and masks of defects"
    label_type = Defect
    _learned_as = frozenset({"classes"})
    needs = frozenset({"label", "mask"})
    files = frozenset({"mask"})
    comparable = "methods are compared by classes, without masks: give images with classes alone"
    learns_unseen = True  # a defect may be of a kind never seen in training

    def read(self, cells: Mapping[str, Cell], where: str) -> Defect:
        return Defect(filled(cells, "label", where), optional(cells, "mask"))

    def check_tested(self, model: Adapted, items: Sequence[Item]) -> None:
        from adapt.data.decoding.masks import check_masks
        from adapt.evaluation.maps import check_masked
        from adapt.methods.base.traits import DrawsMaps, has_trait

        if has_trait(model.method, DrawsMaps) and any(item.label.files for item in items):
            check_masked(model, items)
            check_masks(items, model.backbone.preprocess.turned)
