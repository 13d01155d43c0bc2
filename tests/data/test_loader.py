"""Loader: order, augmentation and resumption by seed, epoch and step; errors from workers."""

from __future__ import annotations

import random
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_transforms import to_tensor, with_noise
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.data import ImageSet, Item, load, loader
from adapt.data.decoding.decoded import Loader
from adapt.data.decoding.draws import seed_for, seeded

Loaded = list[tuple[Tensor, list[Item]]]


def _train(items: list[Item], seed: int = 1, workers: int = 0, batch_size: int = 4) -> Loader:
    return loader(items, with_noise, batch_size, train=True, seed=seed, workers=workers)


def _equal(one: Loaded, other: Loaded) -> bool:
    return len(one) == len(other) and all(
        torch.equal(images, images2) and items == items2
        for (images, items), (images2, items2) in zip(one, other, strict=True)
    )


def test_an_image_set_gives_tensors_and_numbers_of_items(items: list[Item]) -> None:
    images = ImageSet(items, to_tensor)
    image, number = images[3]
    assert (len(images), number) == (10, 3)
    assert image[:, 0, 0].tolist() == [3, 6, 252]


def test_a_test_loader_goes_through_all_in_order(items: list[Item]) -> None:
    batches = loader(items, to_tensor, 4, train=False)
    loaded = list(batches)
    assert len(batches) == 3
    assert [images.shape for images, _ in loaded] == [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    assert torch.cat([images[:, 0, 0, 0] for images, _ in loaded]).tolist() == list(range(10))
    assert [item for _, batch in loaded for item in batch] == items


def test_training_shuffles_and_drops_the_short_batch(items: list[Item]) -> None:
    batches = loader(items, to_tensor, 4, train=True)
    seen = [int(pixel) for images, _ in batches for pixel in images[:, 0, 0, 0]]
    assert (len(batches), len(seen), len(set(seen))) == (2, 8, 8)
    assert seen != sorted(seen)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"), [(16, None, [10]), (4, False, [4, 4, 2]), (16, True, []), (5, None, [5, 5])]
)
def test_drop_last(items: list[Item], batch_size: int, drop_last: bool | None, sizes: list[int]) -> None:
    batches = loader(items, to_tensor, batch_size, train=True, drop_last=drop_last)
    assert len(batches) == len(sizes)
    assert [len(batch) for _, batch in batches] == sizes


@pytest.mark.usefixtures("in_workers")
def test_two_workers_give_what_none_gives_over_two_epochs(items: list[Item]) -> None:
    alone, together = _train(items), _train(items, workers=2)
    first, second = list(alone), list(alone)
    assert not _equal(first, second)
    assert _equal(first, list(together))
    assert _equal(second, list(together))


def test_another_seed_gives_another_order_and_augmentation(items: list[Item]) -> None:
    assert not _equal(list(_train(items, seed=1)), list(_train(items, seed=2)))


def test_augmentation_belongs_to_the_image_and_not_to_the_batch(items: list[Item]) -> None:
    def rows(batch_size: int) -> Tensor:
        return torch.cat([images for images, _ in _train(items, batch_size=batch_size)])

    assert torch.equal(rows(2), rows(5))


def test_resuming_at_an_epoch_and_a_step_is_exact(items: list[Item]) -> None:
    whole = _train(items)
    whole.set_epoch(3)
    third, fourth = list(whole), list(whole)
    resumed = _train(items)
    resumed.set_epoch(3, step=1)
    assert _equal(third[1:], list(resumed))
    assert _equal(fourth, list(resumed))


def test_skipped_steps_are_not_decoded(items: list[Item], tmp_path: Path) -> None:
    skipped = Item.of(path=str(tmp_path / "missing.png"), label="a")
    batches = loader([skipped, *items], to_tensor, 1, train=False)
    batches.set_epoch(0, step=1)
    assert len(list(batches)) == 10


@pytest.mark.usefixtures("in_workers")
def test_the_global_random_states_are_left_as_they_were(items: list[Item]) -> None:
    before = (torch.get_rng_state(), random.getstate())
    list(_train(items))
    list(_train(items, workers=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_seeded_covers_torch_and_random() -> None:
    def draw() -> tuple[float, float]:
        with seeded(seed_for("a", 1)):
            return torch.rand(()).item(), random.random()

    assert draw() == draw()
    assert seed_for("a", 1) != seed_for("a", 2)


@pytest.mark.usefixtures("in_workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_raises_the_error_itself(items: list[Item], tmp_path: Path, workers: int) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = Item.of(path=str(tmp_path / "broken.png"), label="a")
    with pytest.raises(AdaptError, match=r"^image '.*broken.png' cannot be decoded: unknown format\.") as caught:
        list(loader([*items, broken], to_tensor, 4, train=False, workers=workers))
    assert "Traceback" not in str(caught.value)


@pytest.mark.usefixtures("in_workers")
def test_workers_read_from_a_zip_that_is_open_already(emoji_zip: Path) -> None:
    items = load("emoji-concepts").train
    images = ImageSet(items, to_tensor)
    expected = torch.stack([images[position][0] for position in range(len(items))])
    loaded = torch.cat([images for images, _ in loader(items, to_tensor, 1, train=False, workers=2)])
    assert torch.equal(loaded, expected)


@pytest.mark.usefixtures("in_workers")
def test_more_workers_than_processors_do_not_warn(items: list[Item], recwarn: Any) -> None:
    batches = loader(items, to_tensor, 4, train=False, workers=1000)
    assert len(list(islice(batches, 1))) == 1
    assert not recwarn.list


def test_what_is_refused(items: list[Item]) -> None:
    with pytest.raises(AdaptError, match="no images to load"):
        loader([], to_tensor, 4, train=True)
    with pytest.raises(AdaptError, match="batch_size is 0; expected at least 1"):
        loader(items, to_tensor, 0, train=True)


def test_threads_draw_each_by_its_own_seed() -> None:
    expected = {seed: _drawn(seed) for seed in range(8)}
    found: dict[int, list[float]] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: _drawn(seed)})) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def _drawn(seed: int) -> list[float]:
    """Numbers drawn one after the other, with time for other threads in between."""
    with seeded(seed):
        drawn = []
        for _ in range(20):
            drawn.append(float(torch.rand(1)))
            time.sleep(1e-4)
        return drawn
