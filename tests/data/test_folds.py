"""Folds: every image once, whole groups at once, and how far a mean over groups may be off."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from adapt import AdaptError
from adapt.data import Item, Split
from adapt.data.split import folds, parts
from adapt.evaluation.intervals import standard_error


def _split(groups: dict[str, list[int]]) -> Split:
    """Classes with groups of so many images."""
    items = [
        Item.of(path=f"/{name}-{group}-{number}.png", label=name, group=f"{name}-{group}")
        for name, sizes in groups.items()
        for group, size in enumerate(sizes)
        for number in range(size)
    ]
    return Split("made", tuple(groups), tuple(items), (), ())


def test_each_image_is_held_back_once_with_all_of_its_group() -> None:
    split = _split({"cat": [1] * 7, "dog": [3, 2, 2, 1, 1], "newt": [4, 4]})
    chosen = folds(split.train, 3, seed=1)
    tried = list(parts(split, chosen, 3))
    held = sorted(place for _, places in tried for place in places)
    assert held == list(range(len(split.train)))
    for part, places in tried:
        assert part.test == tuple(split.train[place] for place in places)
        assert sorted([*part.train, *part.test], key=lambda item: item.path) == sorted(
            split.train, key=lambda item: item.path
        )
        assert not {item.group for item in part.train} & {item.group for item in part.test}
        assert {item.answer for item in part.train} == {"cat", "dog", "newt"}
    sizes = Counter((split.train[place].answer, fold) for fold, (_, places) in enumerate(tried) for place in places)
    assert sorted(sizes["cat", fold] for fold in range(3)) == [2, 2, 3]
    assert max(sizes["dog", fold] for fold in range(3)) <= 4


def test_a_class_of_one_group_is_always_learnt_from() -> None:
    split = _split({"cat": [5], "dog": [1, 1]})
    chosen = folds(split.train, 2, seed=1)
    assert chosen[:5] == [None] * 5
    assert sorted(fold for fold in chosen[5:] if fold is not None) == [0, 1]
    assert all(len([item for item in part.train if item.answer == "cat"]) == 5 for part, _ in parts(split, chosen, 2))


def test_a_group_of_several_classes_is_on_one_side() -> None:
    """Patients, say, each with images of most classes."""
    items = tuple(
        Item.of(path=f"/{patient}-{label}-{number}.png", label="abc"[label], group=f"patient {patient}")
        for patient in range(8)
        for label in range(3)
        for number in range(2)
        if (patient + label) % 4
    )
    split = Split("made", ("a", "b", "c"), items, (), ())
    for seed in range(10):
        chosen = folds(split.train, 3, seed)
        for part, places in parts(split, chosen, 3):
            assert not {item.group for item in part.train} & {item.group for item in part.test}
            assert {item.answer for item in part.train} == set("abc")
            assert places
        validated = split.with_validation(seed)
        assert validated.val
        assert not {item.group for item in validated.train} & {item.group for item in validated.val}


def test_the_seed_decides() -> None:
    items = _split({"cat": [1] * 20, "dog": [1] * 20}).train
    assert folds(items, 3, seed=4) == folds(items, 3, seed=4) != folds(items, 3, seed=5)
    with pytest.raises(AdaptError, match="folds is 1; expected at least 2"):
        folds(items, 1, seed=4)


def test_images_of_one_group_count_as_about_one() -> None:
    values = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    apart = standard_error(values, list("abcdefgh"))
    assert apart == pytest.approx(float(values.std()) / math.sqrt(8))
    four_times = standard_error(values.repeat_interleave(4), [name for name in "abcdefgh" for _ in range(4)])
    assert four_times == pytest.approx(apart)
    assert standard_error(values, ["a"] * 8) == 0.0


def test_where_classes_need_no_image_each_image_is_held_back() -> None:
    split = _split({"cat": [1] * 7, "dog": [2], "newt": [1]})
    assert folds(split.train, 3, seed=1)[7:] == [None] * 3
    chosen = folds(split.train, 3, seed=1, every_class=False)
    assert set(chosen) == {0, 1, 2}
    assert chosen[7] == chosen[8]  # of one group
    alone = _split({"dog": [3]})
    assert folds(alone.train, 3, seed=1, every_class=False) == [None] * 3
