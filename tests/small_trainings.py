"""Small trainings: three classes, four images of each, a tiny CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch

from adapt import AdaptedModel, fit, methods, wrap
from adapt.data import Split
from adapt.recipe.settings import TrainSettings
from adapt.training.fitting import Fitting
from adapt.training.plan import TrainingPlan
from adapt.training.result import Result

MakeModel = Callable[..., AdaptedModel]
Train = Callable[..., Result]

SETTINGS = {"epochs": 3, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_model(class_names: tuple[str, ...]) -> MakeModel:
    """`make_model(method, **config)`: always the same initial values."""

    def make(method: str = "coop", **config: Any) -> AdaptedModel:
        torch.manual_seed(0)
        return wrap(tiny_backbones.backbone("open_clip"), methods.find(method)(**config), class_names)

    return make


@pytest.fixture
def train(make_model: MakeModel, tiny_split: Split) -> Train:
    """`train(model, **options)`: `fit` on the tiny split with small settings, which `options` override."""

    def run(model: AdaptedModel | None = None, **options: Any) -> Result:
        return fit(model or make_model(n_ctx=4), tiny_split.train, **{"progress": False} | SETTINGS | options)

    return run


@pytest.fixture
def training_of(tiny_split: Split) -> Callable[..., Fitting]:
    """`training_of(model, **settings)`: what a method's `prepare` is given, with small settings and no directory."""

    def make(model: AdaptedModel, **settings: Any) -> Fitting:
        chosen = TrainSettings(**SETTINGS | settings)
        return Fitting(TrainingPlan(model, tiny_split.train, tiny_split.val, chosen=chosen))

    return make
