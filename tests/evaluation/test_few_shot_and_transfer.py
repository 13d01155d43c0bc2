"""Few-shot curves and transfer to other data: what is trained, what is measured, what is refused beforehand."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import by_hand
from PIL import Image

import adapt
from adapt import AdaptError, methods
from adapt.data import Item, Split, read_folder
from adapt.data.split import items_id
from adapt.evaluation import protocols
from adapt.evaluation.run_protocol import run_protocol, summaries
from adapt.evaluation.runs import Target
from adapt.recipe import DataSection, Recipe, build_recipe

SEEDS = (1, 2)
SHOTS = (1, 2)


# Few-shot curves


@pytest.fixture(scope="module")
def curve_recipe(raw: dict[str, Any]) -> Recipe:
    """Two epochs of one step for one shot, three of three steps for two shots."""
    return build_recipe(raw | {"train": raw["train"] | {"epochs": {1: 2, 2: 3, 4: 1}}}, "curve")


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory, curve_recipe: Recipe) -> Path:
    """The folder of a curve over both seeds; not to be written to."""
    out = tmp_path_factory.mktemp("curve") / "whole"
    run_protocol(protocols.few_shot(curve_recipe, SHOTS, SEEDS), out)
    return out


def read(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / name).read_text())
    return found


def test_a_run_for_every_number_of_shots_and_seed(curve: Path) -> None:
    rows = read(curve, "few_shot.json")["runs"]
    expected = [(f"shots-{shots}-seed-{seed}", shots, seed) for shots in SHOTS for seed in SEEDS]
    assert [(row["run"], row["shots"], row["seed"]) for row in rows] == expected
    assert {path.parent.name for path in curve.glob("*/adapter.safetensors")} == {name for name, *_ in expected}
    steps = {name: read(curve / name, "metrics.json")["steps"] for name, *_ in expected}
    assert steps == {name: {1: 2, 2: 9}[shots] for name, shots, _ in expected}


def test_each_run_sees_the_picks_of_its_shots_and_seed(curve: Path, split: Split) -> None:
    rows = read(curve, "few_shot.json")["runs"]
    picks = [split.few_shot(row["shots"], row["seed"]).train for row in rows]
    assert [row["train_set"] for row in rows] == [items_id(each) for each in picks]
    assert len({row["train_set"] for row in rows}) == 4
    assert [len(each) for each in picks] == [5, 5, 10, 10]


def test_a_curve_is_measured_on_all_classes(curve: Path, split: Split, model_folder: Path) -> None:
    frozen = adapt.wrap(adapt.load_backbone(str(model_folder)), methods.ZeroShot("{} texture."), split.class_names)
    for row in read(curve, "few_shot.json")["runs"]:
        adapted = adapt.load(curve / row["run"] / "adapter.safetensors")
        assert (row["test"], row["zero_shot_test"]) == (by_hand(adapted, split.test), by_hand(frozen, split.test))


def test_summaries_are_by_shots(curve: Path) -> None:
    found = read(curve, "few_shot.json")
    print([(r["test"], r["zero_shot_test"]) for r in found["runs"]])
    assert [(group["shots"], group["runs"]) for group in found["summary"]] == [(1, 2), (2, 2)]
    for group in found["summary"]:
        values = [row["test"] for row in found["runs"] if row["shots"] == group["shots"]]
        assert group["mean"] == {"test": statistics.mean(values)}
        assert group["std"] == {"test": statistics.stdev(values)}
        assert group["zero_shot"] == {"test": found["runs"][0]["zero_shot_test"]}
