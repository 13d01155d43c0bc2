"""Classification: one class per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError
from adapt.data.item import Cell, Item, NamedLabel, filled, labels_of, number, optional
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.methods.base import Method


@dataclass(frozen=True)
class Class(NamedLabel):
    """The class name of an image and, if the image is a region, the `overlap` (IoU) with the box of the object."""

    overlap: float | None = None
    caption: str = ""
    """A description of the image, which is read in training alone."""

    def identity(self, root: str) -> dict[str, object]:
        return {"name": None, "overlap": self.overlap}  # and no caption, see `items_id`


class Classes(Task):
    """The task of classification, in which each image, or each text in place of an image, has one class."""

    name = "classes"
    title = "one class per image"
    example = "emoji"
    backbones = frozenset({"dual encoder", "native VLM", "vision encoder"})
    items_are = "images with one class each"
    label_type = Class
    _learned_as = frozenset()
    needs = frozenset({"label"})
    takes_bags = True
    has_class_loss = True
    may_have = frozenset({"overlap", "caption"})

    def read(self, cells: Mapping[str, Cell], where: str) -> Class:
        overlap = number(cells["overlap"], where, "overlap") if "overlap" in cells else None
        if overlap is not None and not 0 <= overlap <= 1:
            raise AdaptError(f"{where}: the overlap is {overlap:g}; expected a number from 0 to 1")
        return Class(filled(cells, "label", where), overlap, optional(cells, "caption"))

    def lacks_label(self, cells: Mapping[str, Cell]) -> bool:
        return not cells["label"]

    def check(self, items: Sequence[Item], name: str) -> None:
        known: dict[bool, Item] = {}
        for item in items:
            if isinstance(item.label, Class):
                known.setdefault(item.label.overlap is not None, item)
        if len(known) == 2:
            raise AdaptError(
                f"data {name!r}: {known[True].name!r} has an overlap, but {known[False].name!r} has no overlap: "
                "give an overlap for every item, or for no item"
            )

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        from adapt.methods.base.traits import LearnsOverlaps, trait

        learns = trait(method, LearnsOverlaps)
        if learns and learns.of_overlaps and self.values(items) is None:
            raise AdaptError(
                f"{method.name} with grades learns from the overlaps of regions with the box of their object, but the "
                "data has no overlaps: give a .csv with a column overlap, or leave out method.grades"
            )

    def values(self, items: Sequence[Item]) -> Tensor | None:
        import torch

        overlaps = [label.overlap for label in labels_of(items, Class)]
        return None if overlaps[0] is None else torch.tensor(overlaps, dtype=torch.float64)
