"""Record linkage (entity resolution): pairs, several of which show one entity, such as a product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapt.tasks.base import Cell, Label, optional
from adapt.tasks.pairs import Pair, Pairs


@dataclass(frozen=True)
class Record(Pair):
    """A pair with the name of the entity that it shows; a pair without a name is an entity of its own."""

    entity: str = ""

    @property
    def unit(self) -> str:
        return self.entity


class Records(Pairs):
    """The task of record linkage: pairs of an image and a text, several of which may show one entity."""

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
