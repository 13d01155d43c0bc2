"""What training settings mean: lengths, batches, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from adapt import AdaptError
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import ImageBatches, KnownBatches
from adapt.training.loop import Length


@pytest.mark.parametrize(
    ("settings", "batches", "steps", "epochs"),
    [
        ({"epochs": 2}, 5, 10, 2),
        ({"epochs": 2, "accumulate": 2}, 5, 6, 2),
        ({"epochs": 2, "accumulate": 9}, 5, 2, 2),
        ({"iterations": 7, "schedule": "constant"}, 5, 7, 2),
        ({"iterations": 5, "schedule": "constant"}, 5, 5, 1),
    ],
)
def test_plan(settings: dict[str, Any], batches: int, steps: int, epochs: int) -> None:
    assert Length.of(TrainSettings(**settings), batches) == Length(steps, epochs)


@pytest.mark.parametrize(
    ("settings", "shots", "length"),
    [
        ({"epochs": 3}, None, (3, None)),
        ({"epochs": {1: 50, 16: 200}}, 16, (200, None)),
        ({"epochs": {1: 50, 16: 200}}, 3, (50, None)),  # of 1, nearer by ratio than 16
        ({"epochs": {1: 50, 16: 200}}, 5, (200, None)),
        ({"epochs": {8: 100, 16: 200}}, 400, (200, None)),
        ({"iterations_per_shot": 500, "schedule": "cosine_iteration"}, 4, (None, 2000)),
    ],
)
def test_length_at_a_number_of_shots(settings: dict[str, Any], shots: int | None, length: tuple[Any, Any]) -> None:
    chosen = TrainSettings(**settings).at(shots)
    assert (chosen.epochs, chosen.iterations) == length


def test_a_table_of_epochs_is_by_numbers_of_images() -> None:
    with pytest.raises(ValueError, match=r"epochs has entries for 0 shots; expected entries for 1 shot or more"):
        TrainSettings(epochs={0: 50})


@pytest.mark.parametrize(
    ("settings", "shots", "message"),
    [
        ({"epochs": {1: 50}}, None, "give train.epochs or train.iterations as a single number"),
        (
            {"iterations_per_shot": 500, "schedule": "constant"},
            None,
            "give train.epochs or train.iterations as a single",
        ),
    ],
)
def test_no_length_for_these_shots(settings: dict[str, Any], shots: int | None, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        TrainSettings(**settings).at(shots)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give exactly one of epochs, iterations and iterations_per_shot"),
        ({"epochs": 1, "iterations": 1}, "give exactly one of epochs, iterations and iterations_per_shot"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"epochs": {4: 0}}, "epochs is 0; expected at least 1"),
        ({"iterations": 5}, "schedule cosine_epoch needs a number of epochs, but iterations are given"),
        ({"epochs": 1, "views": 2, "augment": "none"}, "views needs augmented images"),
        (
            {"epochs": 1, "warmup": 0.1},
            "warmup is a fraction of steps, but cosine_epoch warms up by epochs: give warmup_epochs",
        ),
        ({"epochs": 1, "warmup": 1, "schedule": "constant"}, "less than 1"),
        ({"epochs": 1, "lr": 0}, "greater than 0"),
        ({"epochs": 1, "lr": float("nan")}, "finite|greater than 0"),
        ({"epochs": 1, "lr": float("inf")}, "finite"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings(**settings)


@pytest.mark.parametrize(("batch_size", "drop_last", "count"), [(5, True, 2), (5, False, 3), (32, True, 1)])
def test_a_last_short_batch_goes_only_where_there_is_a_full_one(
    make_model, tiny_split, batch_size: int, drop_last: bool, count: int
) -> None:
    settings = TrainSettings(epochs=1, batch_size=batch_size, drop_last=drop_last, workers=0)
    assert len(KnownBatches(list, tiny_split.train, settings, seed=1)) == count
    assert len(ImageBatches(make_model(), tiny_split.train, settings, seed=1)) == count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1}, "fit: unknown key 'learning_rate'"),
        ({"batchsize": 1}, "did you mean 'batch_size'"),
        ({"distill": 1}, "fit: unknown key 'distill'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"precision": "fp16"}, "fp16 needs a CUDA device: use bf16 or fp32"),
        ({"iterations": 3}, "give exactly one of epochs"),
    ],
)
def test_fit_refuses(train, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        train(**settings)
