"""A feature cache of each test's own, and the recipe that protocols are tried with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapt.data import Item, Split, read_folder
from adapt.protocols import runs
from adapt.recipe import Recipe, build_recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def raw(model_folder: Path, five_classes: Path) -> dict[str, Any]:
    """CoOp on five classes, for three epochs of one step or more; not to be changed."""
    return {
        "method": {"name": "coop", "n_ctx": 2},
        "backbone": str(model_folder),
        "data": {"source": str(five_classes), "shots": 2, "template": "{} texture."},
        "train": {"epochs": 3, "batch_size": 3, "lr": 0.1, "warmup_epochs": 0, "augment": "none", "workers": 0},
        "cache": False,
    }


@pytest.fixture(scope="session")
def recipe(raw: dict[str, Any]) -> Recipe:
    return build_recipe(raw, "tiny")


@pytest.fixture(scope="session")
def split(five_classes: Path) -> Split:
    return read_folder(five_classes)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that are trained from here on."""
    seeds: list[int] = []
    run_recipe = runs.run_recipe

    def counted(recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        seeds.append(recipe.seed)
        return run_recipe(recipe, *arguments, **options)

    monkeypatch.setattr(runs, "run_recipe", counted)
    return seeds


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Item, ...]]:
    """The images that are classified from here on, run by run, beside those of the training runs."""
    parts: list[tuple[Item, ...]] = []
    evaluate = runs.evaluate

    def noted(model: Any, items: tuple[Item, ...], **options: Any) -> Any:
        parts.append(items)
        return evaluate(model, items, **options)

    monkeypatch.setattr(runs, "evaluate", noted)
    return parts
