"""A step that cannot fit into memory is refused before it runs, with what would fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from adapt import AdaptError
from adapt.edits import Parallel
from adapt.recipe.settings import TrainSettings
from adapt.training import step_memory
from adapt.training.batches import training_batches
from adapt.training.step_memory import check_memory, step_bytes


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch, make_model) -> Any:
    """`room_for(n)`: free memory is what a LoRA step over n images is estimated to need."""

    def limit(images: int) -> None:
        model = make_model("lora")
        beside = 2 * sum(parameter.nbytes for parameter in model.method.parameters())  # gradients, momentum
        needed = step_bytes(model).of(images) + beside
        monkeypatch.setattr(step_memory, "free_bytes", lambda device: needed)

    return limit


def test_what_is_suggested_fits_and_gives_the_same_batch(train, make_model, room_for) -> None:
    room_for(3)
    with pytest.raises(
        AdaptError, match=r"a training step over 12 images needs .* are free: set train.batch_size"
    ) as info:
        train(make_model("lora"), batch_size=12)
    batch_size, accumulate = map(int, re.findall(r"train\.\w+ to (\d+)", str(info.value)))
    assert (batch_size, accumulate) == (3, 4)
    result = train(make_model("lora"), batch_size=batch_size, accumulate=accumulate, epochs=1)
    assert result.metrics["steps"] == 1


def test_what_is_suggested_to_several_processes_is_of_all_of_them(make_model, tiny_split, room_for) -> None:
    room_for(3)
    model, settings = make_model("lora"), TrainSettings(epochs=1, batch_size=12, augment="none", workers=0)
    batches = training_batches(model, tiny_split.train, settings, 1, False, None)
    with pytest.raises(AdaptError, match=r"over 6 images .* set train.batch_size to 6 and train.accumulate to 2"):
        check_memory(model, batches, settings, processes=2)


def test_gradients_and_averages_of_what_trains_are_counted(make_model, tiny_split) -> None:
    model = make_model("finetune")
    batches = training_batches(model, tiny_split.train, TrainSettings(epochs=1), 1, False, None)
    by_sgd, by_adam = (
        check_memory(model, batches, TrainSettings(epochs=1, optimizer=name, lr=0.01)) for name in ("sgd", "adamw")
    )
    trained = 4 * sum(parameter.numel() for parameter in model.method.parameters())
    assert by_adam - by_sgd == trained
    assert by_sgd > 2 * trained


def test_checkpointing_is_suggested_and_needs_less(train, make_model, room_for) -> None:
    room_for(3)
    model = make_model("lora")
    whole = step_bytes(model)
    with pytest.raises(AdaptError, match="or set checkpointing: true"):
        train(model, batch_size=4)
    model.checkpointing = True
    assert step_bytes(model).kept < 0.5 * whole.kept  # the inputs of two of three blocks
    assert train(model, batch_size=4, epochs=1).metrics["steps"] == 3


def test_where_not_one_image_fits_no_batch_is_suggested(train, make_model, room_for) -> None:
    room_for(0)
    with pytest.raises(AdaptError, match="not even one fits") as info:
        train(make_model("lora"))
    assert "batch_size" not in str(info.value)


def test_cached_features_need_no_room_for_images(train, room_for) -> None:
    room_for(0)
    assert train(epochs=1).metrics["estimated_bytes"] == 0


def test_what_a_frozen_tower_keeps_is_nothing(make_model) -> None:
    step = step_bytes(make_model())
    assert step.kept == 0
    assert step.of(1000) == step.classes + 1000 * step.working


def test_blocks_before_the_first_edit_need_no_room(make_model) -> None:
    whole, late = (step_bytes(make_model("lora", towers=["vision"], blocks=blocks)) for blocks in ((0, 3), (2, 3)))
    assert late.kept < 0.5 * whole.kept


def test_reading_off_what_is_kept_leaves_randomness_and_mode_alone(make_model) -> None:
    model = make_model("lora", dropout=0.5).eval()
    state = torch.get_rng_state()
    step_bytes(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


class OverTokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.flatten(0, -2)).view_as(x)


def test_a_batch_norm_is_left_as_it_was(make_model) -> None:
    model, norm = make_model("lora"), OverTokens().eval()
    model.method.extra = norm
    edits = model.method.edits
    beside = [Parallel(2, "mlp", norm)]
    model.method.edits = lambda tower, context: edits(tower, context) + (beside if tower.name == "vision" else [])
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert step_bytes(model).kept > 0
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert not norm.training
