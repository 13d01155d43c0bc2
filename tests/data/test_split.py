"""Split: few-shot sampling as published, validation, fingerprint."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from adapt.data.split import Item, Split
from adapt.errors import AdaptError

EUROSAT_TRAIN = (1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500)
EUROSAT_VAL = (600, 600, 600, 500, 500, 400, 500, 600, 500, 600)


def _items(counts: tuple[int, ...], order: tuple[int, ...] | None = None) -> tuple[Item, ...]:
    """`counts[i]` items of label i; the paths are the positions in the list."""
    labels = [label for label in order or range(len(counts)) for _ in range(counts[label])]
    return tuple(Item(str(position), label, f"class {label}") for position, label in enumerate(labels))


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
    assert [item.label for item in few.train] == [2, 2, 0, 0, 1, 1]


def test_a_class_with_fewer_images_gives_all_of_them_and_draws_nothing() -> None:
    few = _split((3, 40, 3)).few_shot(8, seed=5)
    assert Counter(item.label for item in few.train) == {0: 3, 1: 8, 2: 3}
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


def test_an_empty_class_is_named() -> None:
    with pytest.raises(AdaptError, match="no training image of 'class 1'"):
        _split((2, 0, 2))


def test_many_empty_classes_are_counted() -> None:
    with pytest.raises(AdaptError, match=r"'class 1', .*'class 5' and 2 more"):
        _split((2, 0, 0, 0, 0, 0, 0, 0))


def test_a_split_for_evaluation_needs_no_training_images() -> None:
    assert Split("v2", ("a", "b"), (), (), (Item("x", 1, "b"),)).train == ()


@pytest.mark.parametrize(
    ("names", "item", "message"),
    [
        ((), None, "has no classes"),
        (("a", " "), None, "the name of label 1 is empty"),
        (("a", "b", "a"), None, "labels 0 and 2 are both named 'a'"),
        (("a", "b"), Item("x.png", 2, "b"), "'x.png' has label 2; expected 0 to 1"),
        (("a", "b"), Item("x.png", 0, "b"), "'x.png' has label 0 and the name 'b', but label 0 is 'a'"),
    ],
)
def test_labels_and_names_must_agree(names: tuple[str, ...], item: Item | None, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        Split("broken", names, (), (), (item,) if item else ())


def test_the_fingerprint_depends_on_files_and_labels_and_not_on_the_root() -> None:
    def split(root: str, names: tuple[str, ...] = ("0.png", "1.png")) -> Split:
        return Split("s", ("a", "b"), tuple(Item(root + n, i, "ab"[i]) for i, n in enumerate(names)), (), (), root=root)

    one = split("")
    assert len(one.fingerprint) == 16
    assert one.fingerprint == split("/somewhere/else/").fingerprint
    assert one.fingerprint != split("", ("0.png", "2.png")).fingerprint
    assert one.fingerprint != replace(one, train=one.train[::-1]).fingerprint
    assert one.fingerprint != replace(one, train=(), test=one.train).fingerprint
