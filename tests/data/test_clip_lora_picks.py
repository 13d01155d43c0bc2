"""CLIP-LoRA's few-shot rule: val before train, small classes repeated, and one draw for both where there is no val."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from adapt.common.errors import AdaptError
from adapt.data import Item, Split


def _items(counts: tuple[int, ...], start: int = 0) -> tuple[Item, ...]:
    names = [name for name, count in zip("abc", counts) for _ in range(count)]
    return tuple(Item.of(path=str(start + position), label=name) for position, name in enumerate(names))


def _split(train: tuple[int, ...], val: tuple[int, ...] = ()) -> Split:
    return Split("counts", tuple("abc"[: len(train)]), _items(train), _items(val, 1000), ())


def _paths(items: tuple[Item, ...]) -> list[int]:
    return [int(item.path) for item in items]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("shots", "val_shots"), [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4)])
def test_val_is_drawn_first_from_the_same_stream(seed: int, shots: int, val_shots: int) -> None:
    few = _split((20, 30, 25), (9, 8, 7)).few_shot(shots, seed, "clip-lora")
    random.seed(seed)  # the published code draws from the global stream
    val = [start + pick for start, size in ((1000, 9), (1009, 8), (1017, 7)) for pick in _drawn(size, val_shots)]
    train = [start + pick for start, size in ((0, 20), (20, 30), (50, 25)) for pick in _drawn(size, shots)]
    assert _paths(few.val) == val
    assert _paths(few.train) == train


def _drawn(size: int, count: int) -> list[int]:
    return random.sample(range(size), count)


def test_a_small_class_is_repeated_up_to_the_shots() -> None:
    few = _split((3, 20), (2, 20)).few_shot(8, 5, "clip-lora")
    stream = random.Random(5)
    assert _paths(few.val)[:4] == stream.choices([1000, 1001], k=4)
    stream.sample(range(20), 4)
    assert _paths(few.train)[:8] == stream.choices([0, 1, 2], k=8)
    assert [len(few.train), len(few.val)] == [16, 8]


def test_without_validation_images_one_draw_of_train_gives_both() -> None:
    few = _split((30, 40)).few_shot(16, 2, "clip-lora")
    random.seed(2)
    first, second = random.sample(range(30), 20), random.sample(range(30, 70), 20)
    assert _paths(few.train) == first[:16] + second[:16]
    assert _paths(few.val) == first[16:] + second[16:]


@pytest.mark.parametrize("sampling", ["coop", "clip-lora"])
def test_a_class_with_just_enough_images_is_shuffled_and_not_repeated(sampling: Any) -> None:
    few = _split((8, 20), (4, 20)).few_shot(8, 5, sampling)
    stream = random.Random(5)
    if sampling == "coop":
        train = stream.sample(range(8), 8) + stream.sample(range(8, 28), 8)
        val = stream.sample(range(1000, 1004), 4)
    else:
        val = stream.sample(range(1000, 1004), 4)
        stream.sample(range(20), 4)
        train = stream.sample(range(8), 8) + stream.sample(range(8, 28), 8)
    assert _paths(few.train) == train
    assert _paths(few.val)[:4] == val
    assert val != sorted(val)


def test_one_draw_for_both_needs_the_images_of_both() -> None:
    with pytest.raises(AdaptError, match=r"class 'b' has 5 training images, .* needs 6 of each class"):
        _split((30, 5)).few_shot(3, 1, "clip-lora")
    few = _split((30, 6)).few_shot(3, 1, "clip-lora")
    assert sorted(_paths(few.train + few.val))[-6:] == list(range(30, 36))


def test_the_rules_pick_different_images() -> None:
    split = _split((30, 30), (30, 30))
    assert split.few_shot(4, 1, "clip-lora").train != split.few_shot(4, 1).train
    assert split.few_shot(4, 1, "coop") == split.few_shot(4, 1)


def test_what_is_refused() -> None:
    with pytest.raises(AdaptError, match=r"sampling is 'clip-lore'; did you mean 'clip-lora'"):
        _split((3,)).few_shot(1, 1, "clip-lore")  # type: ignore[arg-type]
    with pytest.raises(AdaptError, match="no training images to take 1 shots from"):
        replace(_split((3,)), train=()).few_shot(1, 1, "clip-lora")
