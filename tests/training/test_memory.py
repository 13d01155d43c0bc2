"""A step that cannot fit into memory is refused before it runs, with what would fit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from adapt import AdaptError
from adapt.training import estimate
from adapt.training.estimate import vision_bytes


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch, make_model) -> Any:
    """`room_for(n)`: free memory is what a LoRA step over n images is estimated to need."""

    def limit(images: int) -> None:
        needed = vision_bytes(make_model("lora"), images)
        monkeypatch.setattr(estimate, "free_bytes", lambda device: needed)

    return limit


def test_what_is_suggested_fits_and_gives_the_same_batch(train, make_model, room_for) -> None:
    room_for(3)
    with pytest.raises(AdaptError, match=r"a step over 12 images needs .* are free: set train.batch_size") as info:
        train(make_model("lora"), batch_size=12)
    batch_size, accumulate = map(int, re.findall(r"train\.\w+ to (\d+)", str(info.value)))
    assert (batch_size, accumulate) == (3, 4)
    result = train(make_model("lora"), batch_size=batch_size, accumulate=accumulate, epochs=1)
    assert result.metrics["steps"] == 1


def test_checkpointing_is_suggested_and_needs_less(train, make_model, room_for) -> None:
    room_for(2)
    model = make_model("lora")
    with pytest.raises(AdaptError, match="or set checkpointing: true"):
        train(model, batch_size=4)
    model.checkpointing = True
    assert train(model, batch_size=4, epochs=1).metrics["steps"] == 3


def test_where_not_one_image_fits_no_batch_is_suggested(train, make_model, room_for) -> None:
    room_for(0)
    with pytest.raises(AdaptError, match="not even one image fits") as info:
        train(make_model("lora"))
    assert "batch_size" not in str(info.value)


def test_cached_features_need_no_room_for_images(train, room_for) -> None:
    room_for(0)
    assert train(epochs=1).metrics["estimated_bytes"] == 0
