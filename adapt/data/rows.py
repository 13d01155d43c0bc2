"""From listed images to a split: numbers for the classes, and parts where the list does not say them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adapt.data import parts
from adapt.data.split import Item, Split


class Row(NamedTuple):
    """An image before its class has a number; `part` is "" where the data set does not say it."""

    path: str
    class_name: str
    part: str = ""
    domain: str = ""
    question: str = ""


def to_split(
    name: str, root: str, rows: Sequence[Row], class_names: Sequence[str], ratios: Sequence[float], seed: int
) -> Split:
    """The split of `rows`, with labels by the order of `class_names`.

    Rows without a part are divided by `ratios` and `seed`. Raises AdaptError when a class has no training image.
    """
    label = {class_name: number for number, class_name in enumerate(class_names)}
    undivided = not any(row.part for row in rows)
    part_of = parts.assign([row.class_name for row in rows], ratios, seed) if undivided else [row.part for row in rows]
    items: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for row, part in zip(rows, part_of, strict=True):
        items[part].append(Item(row.path, label[row.class_name], row.class_name, row.domain, row.question))
    return Split(name, tuple(class_names), tuple(items["train"]), tuple(items["val"]), tuple(items["test"]), root=root)
