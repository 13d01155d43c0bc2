"""Cross-validation: each image is predicted by a model that was trained on neither it nor others of its group."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.data.split import Split

MOST = 5  # folds by default


def usual_count(items: Sequence[Item], most: int = MOST) -> int:
    """Return the default number of folds: the median number of images per class, but at least two and at most `most`.

    With this number, every model is trained on about equally many images of each class. With two images per class and
    five folds, for example, a model would be trained on two images of most classes but on only one image of the tested
    class, and would seldom predict the tested class.
    """
    counts = Counter(item.stratum if item.task.one_class else "" for item in items)
    return max(2, min(most, round(median(counts.values())))) if counts else 2


def folds(items: Sequence[Item], count: int, seed: int, every_class: bool = True) -> list[int | None]:
    """Return the fold number (0 to `count` - 1) of each item, stratified by class, with groups kept together.

    A group may have images of several classes. If all groups of a class are in one fold, such as for a class with a
    single group, the fold number of the class's items is None: every model must be trained on these items, so that no
    model can be tested on them. Without `every_class`, a model need not be trained on every class, and this holds only
    for a single group of all items. Raises AdaptError for fewer than two folds.
    """
    if count < 2:
        raise AdaptError(f"folds is {count}; expected at least 2, one fold to test on and other folds to train on")
    stream, fold_of = random.Random(seed), dict[str, int]()
    groups: dict[str, dict[str, int]] = {}  # number of images, by class and group
    for item in items:
        own = groups.setdefault(item.stratum, {})
        own[item.kept_with] = own.get(item.kept_with, 0) + 1
    for own in groups.values():
        drawn = list(own)
        stream.shuffle(drawn)
        sizes, order = [0] * count, stream.sample(range(count), count)
        for group in sorted(drawn, key=lambda each: -own[each]):  # into the fold with the fewest of the class
            fold = fold_of.setdefault(group, min(order, key=lambda each: sizes[each]))
            sizes[fold] += own[group]
    parts = groups.values() if every_class else [fold_of]
    together = [own for own in parts if len({fold_of[group] for group in own}) == 1]
    undivided = {group for own in together for group in own}
    return [None if item.kept_with in undivided else fold_of[item.kept_with] for item in items]


def kept_and_held(chosen: Sequence[int | None], count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (indices of the training items, indices of the held-out items) for each fold that has items."""
    for fold in range(count):
        held = [place for place, own in enumerate(chosen) if own == fold]
        if held:
            yield [place for place, own in enumerate(chosen) if own != fold], held


def parts(split: Split, chosen: Sequence[int | None], count: int) -> Iterator[tuple[Split, list[int]]]:
    """Yield (split with the fold as test data and the other images as training data, fold's indices) for each fold."""
    for learned, held_out in kept_and_held(chosen, count):
        train, test = (tuple(split.train[place] for place in own) for own in (learned, held_out))
        yield replace(split, train=train, test=test), held_out
