"""Record linkage (entity resolution): pairs, several of which show one entity, such as a product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapt.data.item import Cell, Label, optional
from adapt.tasks.pairs import Pair, Pairs


@dataclass(frozen=True)
class Record(Pair):
    """The label of an image-text pair with the name of the pair's entity, or "" if no entity is given."""

    entity: str = ""

    @property
    def unit(self) -> str:
        return self.entity


class Records(Pairs):
    """The task of record linkage with image-text pairs, in which several pairs may describe the same entity."""

    name = "records"
    title = "pairs of images and texts, several per entity"
    example = "emoji-records"
    items_are = "pairs of images and texts, several per entity"
    label_type = Record
    needs = frozenset({"path", "text", "entity"})
    keeps_entities_together = True

    def read(self, cells: Mapping[str, Cell], where: str) -> Label:
        pair = super().read(cells, where)
        return Record(pair.rephrased, optional(cells, "entity")) if isinstance(pair, Pair) else pair
