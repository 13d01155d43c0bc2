"""Batches of conversations: similar numbers of tokens, and nothing drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_natives
from PIL import Image

import adapt
from adapt import AdaptError
from adapt.data import Item
from adapt.data.decoding.draws import Epochs
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import training_batches

LENGTHS = [7 * number % 101 for number in range(1010)]


def test_a_batch_has_items_of_similar_lengths_and_each_is_drawn_once() -> None:
    epochs = Epochs(1010, 4, shuffle=True, seed=3, drop_last=False, lengths=LENGTHS)
    batches = [[draw.position for draw in batch] for batch in epochs]
    assert sorted(position for batch in batches for position in batch) == list(range(1010))
    assert [len(batch) for batch in batches] == [4] * 252 + [2]  # the short one is the last
    spread = [max(own) - min(own) for own in ([LENGTHS[position] for position in batch] for batch in batches[:-1])]
    assert sum(spread) / len(spread) < 4  # shuffled: 60
    shortest = [min(LENGTHS[position] for position in batch) for batch in batches[:50]]
    assert shortest != sorted(shortest)  # the batches themselves are shuffled


def test_another_epoch_has_other_batches_and_goes_on_where_it_stopped() -> None:
    epochs = Epochs(1010, 4, shuffle=True, seed=3, drop_last=True, lengths=LENGTHS)
    first = [[draw.position for draw in batch] for batch in epochs]
    epochs.step = 100
    assert [[draw.position for draw in batch] for batch in epochs] == first[100:]
    epochs.epoch, epochs.step = 1, 0
    assert {frozenset(draw.position for draw in batch) for batch in epochs} != {frozenset(batch) for batch in first}


@pytest.mark.parametrize("cache", [True, False])
def test_conversations_are_grouped_by_their_tokens(tmp_path: Path, cache: bool) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    items = [Item.of(path=str(tmp_path / "a.png"), question="why " * (1 + 9 * (n % 2)), label="so") for n in range(16)]
    model = adapt.wrap(tiny_natives.backbone("llava"), adapt.methods.LoRA(towers=("decoder",)))
    settings = TrainSettings(epochs=1, batch_size=8, group_by_length=True, workers=0)
    batches = training_batches(model, items, settings, 1, cache, None)
    for _, own in batches.epoch(0, 0):
        assert len({item.label.columns["question"] for item in own}) == 1


def test_conversations_are_not_augmented(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    items = [Item.of(path=str(tmp_path / "a.png"), question="what is it?", label="red")] * 2
    model = adapt.wrap(tiny_natives.backbone("llava"), adapt.methods.LoRA(towers=("decoder",)))
    with pytest.raises(AdaptError, match=r"train\.augment is published, but the processor of .* images as they are"):
        adapt.fit(model, items, epochs=1, augment="published")


def test_images_of_one_length_are_not_grouped(tmp_path: Path) -> None:
    model = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.LoRA(), ("cat", "dog"))
    items = [Item.of(path="a.png", label="cat"), Item.of(path="b.png", label="dog")]
    with pytest.raises(AdaptError, match=r"group_by_length is for conversations, .* is a dual encoder"):
        adapt.fit(model, items, epochs=1, group_by_length=True)
