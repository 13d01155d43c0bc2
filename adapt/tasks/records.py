"""Pairs of which several are of one entity, such as one product: record linkage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapt.tasks.base import Label
from adapt.tasks.pairs import Pair, Pairs


@dataclass(frozen=True)
class Record(Pair):
    """The entity that a pair is of; a pair without one is by itself."""

    entity: str = ""

    @property
    def unit(self) -> str:
        return self.entity


class Records(Pairs):
    """Pairs of images and texts, those of one entity belonging together."""

    name = "records"
    title = "pairs of images and texts, several of one entity"
    example = "emoji-records"
    items_are = "pairs of images and texts, several of one entity"
    label_type = Record
    needs = frozenset({"path", "text", "entity"})
    keeps_entities_together = True

    def read(self, cells: Mapping[str, Any], where: str) -> Label:
        pair = super().read(cells, where)
        return Record(pair.rephrased, cells["entity"]) if isinstance(pair, Pair) else pair
