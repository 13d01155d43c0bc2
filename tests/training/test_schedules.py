"""Learning rates against the published numbers, and against the schedulers of torch and transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import get_scheduler

from adapt.recipe.settings import TrainSettings
from adapt.training.loop import learning_rate

# lr, the rates of the epochs (papers.md 1.1, computed from Dassl's scheduler); None: not listed
_PUBLISHED = {
    "maple b2n": (0.0035, [1e-5, 0.003500, 0.003166, 0.002291, 0.001209]),
    "maple xd": (0.0026, [1e-5, 0.0026]),
    "cocoop": (0.002, [1e-5, 0.002, 0.001951, 0.001809, 0.001588, 0.001309, 0.001, 0.000691, 0.000412, 0.000191]),
    "promptsrc": (0.0025, [1e-5, 0.0025, 0.002485, *[None] * 15, 0.000136, 0.000061]),
}


@pytest.mark.parametrize("paper", _PUBLISHED)
def test_cosine_by_epoch_is_the_published_one(paper: str) -> None:
    lr, rates = _PUBLISHED[paper]
    settings = TrainSettings(epochs=len(rates), lr=lr)
    for epoch, expected in enumerate(rates):
        if expected is not None:
            assert learning_rate(settings, epoch, len(rates), 0, 1) == pytest.approx(expected, abs=5e-7)


def test_cosine_by_iteration_is_torchs() -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    scheduler = CosineAnnealingLR(optimizer, T_max=500, eta_min=1e-6)
    settings = TrainSettings(iterations=500, schedule="cosine_iteration", lr=2e-4, min_lr=1e-6)
    for step in range(500):
        assert learning_rate(settings, 0, 1, step, 500) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("cosine_iteration", "cosine"), ("linear_iteration", "linear"), ("constant", "constant_with_warmup")],
)
@pytest.mark.parametrize(("warmup", "rising"), [(0.0, 0), (0.03, 8), (0.1, 25)])
def test_a_warm_up_by_steps_is_that_of_transformers(schedule: str, theirs: str, warmup: float, rising: int) -> None:
    settings = TrainSettings(epochs=1, schedule=schedule, warmup=warmup, lr=2e-4)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=rising, num_training_steps=250)
    for step in range(250):
        assert learning_rate(settings, 0, 1, step, 250) == pytest.approx(
            scheduler.get_last_lr()[0], rel=1e-6, abs=1e-12
        )
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 10, "schedule": "cosine_epoch", "lr": 0.002}, 0.001 * (1 + math.cos(math.pi * 3 / 10))),
        ({"epochs": 10, "schedule": "cosine_epoch", "lr": 0.002, "warmup_epochs": 5}, 1e-5),
        ({"iterations": 50, "schedule": "cosine_iteration", "lr": 0.1}, 0.05 * (1 + math.cos(math.pi * 23 / 50))),
        ({"epochs": 10, "schedule": "constant", "lr": 0.3}, 0.3),
    ],
)
def test_the_settings_choose_the_schedule(settings: dict[str, object], expected: float) -> None:
    assert learning_rate(TrainSettings(**settings), 4, 10, 23, 50) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"epochs": 3, "warmup_epochs": 1}, [1e-5] * 3 + [0.002] * 3 + [0.0015] * 3),
        ({"epochs": None, "iterations": 4, "schedule": "cosine_iteration"}, [0.002, 0.001707, 0.001, 0.000293]),
        ({"epochs": None, "iterations": 4, "schedule": "linear_iteration"}, [0.002, 0.0015, 0.001, 0.0005]),
        ({"epochs": None, "iterations": 4, "schedule": "constant", "warmup": 0.5}, [0, 0.001, 0.002, 0.002]),
    ],
)
def test_every_step_is_taken_at_its_rate(train, settings: dict[str, object], rates: list[float]) -> None:
    history = train(**settings).history
    assert [entry["lr"] for entry in history] == pytest.approx(rates, abs=5e-7)
