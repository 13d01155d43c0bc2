"""Split: few-shot sampling as published, base and new halves, validation, fingerprint."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from checks import numbers

from adapt.common.errors import AdaptError
from adapt.data.split import Item, Split

EUROSAT_TRAIN = (1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500)
EUROSAT_VAL = (600, 600, 600, 500, 500, 400, 500, 600, 500, 600)


def _items(counts: tuple[int, ...], order: tuple[int, ...] | None = None) -> tuple[Item, ...]:
    """`counts[i]` items of class i; the paths are the positions in the list."""
    labels = [label for label in order or range(len(counts)) for _ in range(counts[label])]
    return tuple(Item.of(path=str(position), label=f"class {label}") for position, label in enumerate(labels))


def _split(train: tuple[int, ...], val: tuple[int, ...] = (), order: tuple[int, ...] | None = None) -> Split:
    names = tuple(f"class {label}" for label in range(len(train)))
    return Split("counts", names, _items(train, order), _items(val), _items(train))


def _positions(items: tuple[Item, ...]) -> list[int]:
    return [int(item.path) for item in items]


def _same_size(number: int, size: int) -> tuple[int, ...]:
    return (size,) * number


@pytest.mark.parametrize(
    ("seed", "train", "val"),
    [
        (
            1,
            [275, 2665, 3129, 5022, 5991, 7507, 8920, 10217, 11527, 12429],
            [96, 1099, 1229, 2257, 2727, 2999, 3421, 3702, 4656, 5256],
        ),
        (
            2,
            [115, 1687, 3173, 5239, 6096, 7753, 8631, 9765, 11990, 12434],
            [36, 1195, 1362, 2020, 2626, 3001, 3611, 4221, 4786, 5180],
        ),
        (
            3,
            [487, 2713, 4114, 4767, 6507, 7937, 9236, 10220, 11939, 12134],
            [13, 1080, 1465, 2082, 2419, 2898, 3567, 4181, 4576, 5362],
        ),
    ],
)
def test_one_shot_picks_of_eurosat(seed: int, train: list[int], val: list[int]) -> None:
    few = _split(EUROSAT_TRAIN, EUROSAT_VAL).few_shot(1, seed)
    assert _positions(few.train) == train
    assert _positions(few.val) == val


def test_sixteen_shot_picks_of_eurosat_come_with_four_for_validation() -> None:
    few = _split(EUROSAT_TRAIN, EUROSAT_VAL).few_shot(16, seed=1)
    expected = [275, 1165, 129, 522, 241, 1014, 920, 967, 1334, 777, 429, 192, 999, 58, 798, 886]
    assert _positions(few.train)[:16] == expected
    assert _positions(few.val)[:4] == [463, 14, 287, 255]
    assert (len(few.train), len(few.val)) == (160, 40)


def test_four_shot_picks_of_textures() -> None:
    few = _split(_same_size(47, 60), _same_size(47, 24)).few_shot(4, seed=1)
    assert _positions(few.train)[:8] == [8, 36, 54, 51, 108, 64, 76, 67]
    assert _positions(few.val)[:8] == [15, 11, 13, 0, 41, 43, 34, 38]


def test_classes_are_sampled_in_the_order_of_their_first_appearance() -> None:
    few = _split((5, 5, 5), order=(2, 0, 1)).few_shot(2, seed=1)
    assert [item.answer for item in few.train] == ["class 2"] * 2 + ["class 0"] * 2 + ["class 1"] * 2


def test_a_class_with_fewer_images_gives_all_of_them_and_draws_nothing() -> None:
    few = _split((3, 40, 3)).few_shot(8, seed=5)
    assert Counter(item.answer for item in few.train) == {"class 0": 3, "class 1": 8, "class 2": 3}
    assert _positions(few.train)[:3] == [0, 1, 2]
    assert _positions(few.train)[3:11] == [3 + pick for pick in random.Random(5).sample(range(40), 8)]


def test_sampling_leaves_the_test_images_and_the_global_random_state() -> None:
    split = _split((5, 5), (5, 5))
    before = random.getstate()
    few = split.few_shot(2, seed=1)
    assert random.getstate() == before
    assert few.test == split.test
    assert (few.name, few.class_names, few.template) == (split.name, split.class_names, split.template)


def test_sampling_refuses_no_shots_and_no_training_images() -> None:
    split = _split((5, 5))
    with pytest.raises(AdaptError, match="shots is 0; expected at least 1"):
        split.few_shot(0, seed=1)
    with pytest.raises(AdaptError, match="'counts' has no training images to take 4 shots from"):
        replace(split, train=()).few_shot(4, seed=1)


@pytest.mark.parametrize(("classes", "base"), [(2, 1), (5, 3), (10, 5), (37, 19)])
def test_the_base_half_are_the_first_classes_one_more_where_odd(classes: int, base: int) -> None:
    split = _split(_same_size(classes, 1))
    assert split.only("base").class_names == split.class_names[:base]
    assert split.only("new").class_names == split.class_names[base:]


def test_all_three_parts_are_cut_and_labelled_from_0() -> None:
    split = _split((3, 2, 4, 1, 2), (1, 0, 2, 1, 3))
    base, new = split.only("base"), split.only("new")
    assert [_positions(part) for part in (base.train, base.val, base.test)] == [[*range(9)], [0, 1, 2], [*range(9)]]
    assert [_positions(part) for part in (new.train, new.val, new.test)] == [[9, 10, 11], [3, 4, 5, 6], [9, 10, 11]]
    assert numbers(base.test, base.class_names) == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert numbers(new.test, new.class_names) == [0, 1, 1]
    assert numbers(new.val, new.class_names) == [0, 1, 1, 1]
    assert [item.answer for item in new.train] == ["class 3", "class 4", "class 4"]
    assert (new.name, new.template, new.root) == (split.name, split.template, split.root)


@pytest.mark.parametrize(
    ("half", "train", "val"),
    [
        ("base", [275, 2665, 3129, 5022, 5991], [96, 1099, 1229, 2257, 2727]),
        ("new", [7507, 8920, 10217, 11527, 12429], [2999, 3421, 3702, 4656, 5256]),
    ],
)
def test_the_halves_of_the_one_shot_picks_of_eurosat(half: str, train: list[int], val: list[int]) -> None:
    few = _split(EUROSAT_TRAIN, EUROSAT_VAL).few_shot(1, seed=1).only(half)
    assert _positions(few.train) == train
    assert _positions(few.val) == val
    assert numbers(few.train, few.class_names) == numbers(few.val, few.class_names) == [0, 1, 2, 3, 4]


def test_the_picks_are_drawn_over_all_classes_and_then_cut() -> None:
    split = _split((9, 9, 9, 9, 9), (5, 5, 5, 5, 5), order=(4, 0, 3, 1, 2))
    few = split.few_shot(2, seed=1)
    for half, labels in (("base", "012"), ("new", "34")):
        picked = [_positions(tuple(i for i in part if i.answer[-1] in labels)) for part in (few.train, few.val)]
        cut = few.only(half)
        assert [_positions(cut.train), _positions(cut.val)] == picked
        assert _positions(split.only(half).few_shot(2, seed=1).train) != picked[0]


def test_all_classes_are_the_split_itself() -> None:
    split = _split((2, 2))
    assert split.only("all") is split


def test_one_class_leaves_none_to_be_new() -> None:
    split = _split((2,))
    assert split.only("base") == split
    with pytest.raises(AdaptError, match="'counts' has 1 class, so the part 'new' of the classes is empty"):
        split.only("new")


def test_a_split_for_evaluation_is_cut_too() -> None:
    split = Split("v2", ("a", "b"), (), (), (Item.of(path="x", label="b"), Item.of(path="y", label="a")))
    assert split.only("new").test == (Item.of(path="x", label="b"),)


def test_an_empty_class_is_named() -> None:
    with pytest.raises(AdaptError, match="no training image of 'class 1'"):
        _split((2, 0, 2))


def test_many_empty_classes_are_counted() -> None:
    with pytest.raises(AdaptError, match=r"'class 1', .*'class 5' and 2 more"):
        _split((2, 0, 0, 0, 0, 0, 0, 0))


def test_a_split_for_evaluation_needs_no_training_images() -> None:
    assert Split("v2", ("a", "b"), (), (), (Item.of(path="x", label="b"),)).train == ()


@pytest.mark.parametrize(
    ("names", "item", "message"),
    [
        ((), None, "has no classes"),
        (("a", " "), None, "the name of label 1 is empty"),
        (("a", "b", "a"), None, "labels 0 and 2 are both named 'a'"),
        (("a", "b"), Item.of(path="x.png", label="c"), "has the class 'c'; expected one of the data set's 2 class"),
    ],
)
def test_labels_and_names_must_agree(names: tuple[str, ...], item: Item | None, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        Split("broken", names, (), (), (item,) if item else ())


def test_the_fingerprint_depends_on_files_and_labels_and_not_on_the_root() -> None:
    def split(root: str, names: tuple[str, ...] = ("0.png", "1.png")) -> Split:
        items = tuple(Item.of(path=root + name, label=label) for name, label in zip(names, "ab", strict=True))
        return Split("s", ("a", "b"), items, (), (), root=root)

    one = split("")
    assert len(one.fingerprint) == 16
    assert one.fingerprint == split("/somewhere/else/").fingerprint
    assert one.fingerprint != split("", ("0.png", "2.png")).fingerprint
    assert one.fingerprint != replace(one, train=one.train[::-1]).fingerprint
    assert one.fingerprint != replace(one, train=(), test=one.train).fingerprint


def grouped(count: int, size: int) -> Split:
    """Two classes of `count` groups with `size` images each, and one of a single image."""
    items = [
        Item.of(path=f"/{name}/{group}/{number}.png", label=name, group=f"{name} {group}")
        for name in ("cat", "dog")
        for group in range(count)
        for number in range(size)
    ]
    return Split("grouped", ("cat", "dog", "owl"), (*items, Item.of(path="/owl.png", label="owl")), (), ())


def test_validation_images_are_a_fifth_of_each_class_by_whole_groups() -> None:
    split = grouped(5, 4)
    carved = split.with_validation(3)
    assert sorted((*carved.train, *carved.val), key=split.train.index) == list(split.train)
    assert [sum(item.answer == name for item in carved.val) for name in split.class_names] == [4, 4, 0]
    assert {item.group for item in carved.train}.isdisjoint(item.group for item in carved.val)
    assert carved == split.with_validation(3) != split.with_validation(4)
    assert grouped(1, 4).with_validation(1).val == ()  # one group each: nothing could be held back
    with pytest.raises(AdaptError, match="already has validation images"):
        carved.with_validation(1)


@pytest.mark.parametrize(("images", "held"), [(2, 1), (5, 1), (8, 1), (9, 1), (10, 2), (14, 2), (15, 3)])
def test_a_fifth_is_rounded_down_but_never_to_none(images: int, held: int) -> None:
    carved = grouped(images, 1).with_validation(1)
    assert [sum(item.answer == name for item in carved.val) for name in ("cat", "dog")] == [held, held]
