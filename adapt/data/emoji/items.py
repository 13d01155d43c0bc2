"""Bundled items of four drawings: four of one class, or one among three of things that no class names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from adapt.data.decoding.files import zip_root
from adapt.data.emoji import archive
from adapt.data.emoji.archive import UNSEEN_STYLE, index
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.tasks import Label

IMAGES = 4  # of an item


def in_items(split: Split) -> Split:
    """Return `split` with the images of each class in items of up to four, drawn with a fixed seed."""
    return _of_parts(split, [_of_one_class(part) for part in (split.train, split.val, split.test)])


def in_clutter(split: Split) -> Split:
    """Return `split` with each image in an item with three drawings of things that no class names.

    Train, val and test have drawings of different things.
    """
    drawn = [entry for entry in index()["items"] if entry["class"] is None and entry["style"] != UNSEEN_STYLE]
    concepts = sorted({entry["concept"] for entry in drawn})
    random.Random(0).shuffle(concepts)
    root, parts = zip_root(archive.ARCHIVE), []
    for number, part in enumerate((split.train, split.val, split.test)):
        own = set(concepts[number::3])
        others = [root + entry["file"] for entry in drawn if entry["concept"] in own]
        parts.append(_cluttered(part, others, random.Random(number)))
    return _of_parts(split, parts)


def _of_parts(split: Split, parts: Sequence[tuple[Item, ...]]) -> Split:
    train, val, test = parts
    return replace(split, train=train, val=val, test=test)


def _of_one_class(images: Sequence[Item]) -> tuple[Item, ...]:
    stream, of_classes = random.Random(0), dict[Label, list[str]]()
    for image in images:
        of_classes.setdefault(image.label, []).append(image.path)
    items = []
    for label, paths in of_classes.items():
        stream.shuffle(paths)
        items += [Item(tuple(paths[start : start + IMAGES]), label) for start in range(0, len(paths), IMAGES)]
    return tuple(items)


def _cluttered(images: Sequence[Item], others: Sequence[str], stream: random.Random) -> tuple[Item, ...]:
    items = []
    for image in images:
        paths = [image.path, *stream.sample(others, IMAGES - 1)]
        stream.shuffle(paths)
        items.append(replace(image, paths=tuple(paths)))
    return tuple(items)
