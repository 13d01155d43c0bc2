"""SS-Text's class weights: what images add to a text, and a class that has none, from the folder to the answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError
from adapt.data import load
from adapt.methods import ss_text
from adapt.recipe import Recipe, read_recipe
from adapt.training.run_recipe import read_data, run_recipe


@pytest.fixture
def texts() -> Tensor:
    return F.normalize(torch.randn(4, 16), dim=-1)


@pytest.fixture
def features() -> Tensor:
    return F.normalize(torch.randn(12, 16), dim=-1)


def repelled(weights: Tensor) -> Tensor:
    """What SS-Text+ makes of weights in the end."""
    return weights - F.normalize(2 * weights - weights.mean(0), dim=-1)


@pytest.mark.parametrize("solve", [ss_text.alike, ss_text.by_frequency])
def test_the_order_of_images_does_not_matter(solve: Any, texts: Tensor, features: Tensor) -> None:
    labels, order = torch.arange(12) % 4, torch.randperm(12)
    weights = solve(texts, features, labels, 50.0)
    assert scaled(solve(texts, features[order], labels[order], 50.0), weights) < 1e-6


def test_equal_classes_share_what_images_add(texts: Tensor, features: Tensor) -> None:
    labels = torch.arange(12) % 4
    added = ss_text.alike(texts, features, labels, 50.0) - texts
    assert scaled(added[1], 50 * features[1::4].sum(0)) < 1e-6
    assert scaled(ss_text.by_frequency(texts, features, labels, 50.0), repelled(texts + added / 4)) < 1e-6


def test_unequal_classes_count_by_their_shares(texts: Tensor, features: Tensor) -> None:
    labels = torch.tensor([0] * 8 + [1] * 3 + [3])
    shares = torch.tensor([8, 3, 0, 1])[:, None] / 12
    sums = torch.stack([features[labels == label].sum(0) for label in range(4)])
    assert scaled(ss_text.by_frequency(texts, features, labels, 50.0), repelled(texts + 50 * shares * sums)) < 1e-6


# a class without images


def of_folder(folder: Path, model_folder: Path, method: str = "ss_text", *more: str) -> Recipe:
    return read_recipe(method, [f"backbone={model_folder}", "data.shots=2", *more], data=str(folder))


@pytest.fixture
def lacking(five_classes: Path, tmp_path: Path) -> Path:
    """`five_classes` without training images of the sky."""
    folder = Path(shutil.copytree(five_classes, tmp_path / "plain"))
    shutil.rmtree(folder / "train" / "sky")
    return folder


def test_it_trains_where_other_methods_refuse(lacking: Path, model_folder: Path, tmp_path: Path) -> None:
    result = run_recipe(of_folder(lacking, model_folder), tmp_path / "run", progress=False)
    assert result.metrics["train_images"] == 8
    assert result.metrics["adapted"]["images"] == 20
    for other in ("coop", "gda"):
        with pytest.raises(AdaptError, match="no training image of 'sky'"):
            read_data(of_folder(lacking, model_folder, other))


def test_the_class_keeps_its_text_and_is_answered(lacking: Path, model_folder: Path, tmp_path: Path) -> None:
    recipe = of_folder(lacking, model_folder, "ss_text", "method.variant=SS-Text")
    run_recipe(recipe, tmp_path / "run", progress=False)
    model: AdaptedModel = adapt.load(tmp_path / "run" / "adapter.safetensors")
    place = model.class_names.index("sky")
    texts = model.frozen_class_features(["a photo of a {}."])
    weights: Any = model.method.weight
    assert scaled(weights[place], texts[place]) < 1e-6
    assert all((weights - texts).norm(dim=-1)[[label for label in range(5) if label != place]] > 1)
    assert int(model.logits(texts[place, None]).argmax()) == place


def test_shots_of_such_data_are_drawn_of_the_other_classes(lacking: Path) -> None:
    split = load(lacking, unseen=True)
    assert split.unseen
    assert len(split.few_shot(1, seed=1).train) == 4
    assert split.few_shot(1, seed=1).class_names == split.class_names
    with pytest.raises(AdaptError, match="no training image of 'sky'"):
        load(lacking)  # later data is as it was
