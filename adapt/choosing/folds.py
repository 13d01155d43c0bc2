"""Cross-validation: each image is answered once by a model that has not seen it, nor others of its group."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from adapt.data.split import Item, Split
from adapt.errors import AdaptError


def folds(items: Sequence[Item], count: int, seed: int) -> list[int | None]:
    """The fold, from 0 to `count` - 1, of each of `items`: stratified by class, whole groups at once.

    None for images of a class with one group alone, which every model must learn from, and so none can be tried on.
    Raises AdaptError for fewer than two folds.
    """
    if count < 2:
        raise AdaptError(f"folds is {count}; expected at least 2: what one is tried on must learn from the others")
    stream = random.Random(seed)
    groups: dict[int, dict[str, list[int]]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.label, {}).setdefault(item.group or item.path, []).append(place)
    chosen: list[int | None] = [None] * len(items)
    for own in groups.values():
        drawn = list(own.values())
        if len(drawn) == 1:
            continue
        stream.shuffle(drawn)
        sizes, order = [0] * count, stream.sample(range(count), count)
        for number, group in enumerate(sorted(drawn, key=len, reverse=True)):
            # the first ones apart, so that none has all; then where there are fewest
            fold = order[number] if number < count else min(order, key=lambda each: sizes[each])
            sizes[fold] += len(group)
            for place in group:
                chosen[place] = fold
    return chosen


def parts(split: Split, chosen: Sequence[int | None], count: int) -> Iterator[tuple[Split, list[int]]]:
    """For each fold the split that trains on all other images and is tested on its own, and where those stand."""
    for fold in range(count):
        held = [place for place, own in enumerate(chosen) if own == fold]
        if held:
            kept = tuple(item for item, own in zip(split.train, chosen, strict=True) if own != fold)
            yield replace(split, train=kept, test=tuple(split.train[place] for place in held)), held
