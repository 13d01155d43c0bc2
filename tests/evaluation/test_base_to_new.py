"""Base to new: what is measured, what is not done twice, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.data import Item, Split, open_image, read_folder
from adapt.data.split import items_id
from adapt.evaluation.base_to_new import base_to_new, harmonic, summary
from adapt.recipe import Recipe, build_recipe
from adapt.training.run import Run
from adapt.training.run_recipe import read_data, run_recipe

SEEDS = (1, 2)
NAMES = ("goldfish", "lime tree", "red panda", "sky", "tin can")
MODULE = "adapt.evaluation.base_to_new"


@pytest.fixture(scope="module")
def raw(model_folder: Path, five_classes: Path) -> dict[str, Any]:
    """CoOp on five classes, for three epochs of one step or more."""
    return {
        "method": {"name": "coop", "n_ctx": 2},
        "backbone": str(model_folder),
        "data": {"source": str(five_classes), "shots": 2, "template": "{} texture."},
        "train": {"epochs": 3, "batch_size": 3, "lr": 0.1, "warmup_epochs": 0, "augment": "none", "workers": 0},
        "cache": False,
    }


@pytest.fixture(scope="module")
def recipe(raw: dict[str, Any]) -> Recipe:
    return build_recipe(raw, "tiny")


@pytest.fixture(scope="module")
def split(five_classes: Path) -> Split:
    return read_folder(five_classes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """The folder of a protocol over both seeds; not to be written to."""
    out = tmp_path_factory.mktemp("b2n") / "whole"
    base_to_new(recipe, SEEDS, out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that are trained from here on."""
    seeds: list[int] = []

    def counted(recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        seeds.append(recipe.seed)
        return run_recipe(recipe, *arguments, **options)

    monkeypatch.setattr(f"{MODULE}.run_recipe", counted)
    return seeds


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "base_to_new.json").read_text())
    return found


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@torch.inference_mode()
def by_hand(model: AdaptedModel, items: Sequence[Item], first: int) -> float:
    """The share of `items` whose class the model calls right, its own labels starting at `first`."""
    transform = model.backbone.transform(train=False)
    chosen = model.eval()(torch.stack([transform(open_image(item)) for item in items])).argmax(-1).tolist()
    return sum(label + first == item.label for label, item in zip(chosen, items)) / len(items)


def test_each_half_is_measured_among_its_own_names(finished: Path, split: Split, model_folder: Path) -> None:
    halves = {"base": (0, NAMES[:3]), "new": (3, NAMES[3:])}
    for seed, row in zip(SEEDS, read(finished)["seeds"]):
        expected: dict[str, Any] = {"seed": seed}
        for half, (first, names) in halves.items():
            items = [item for item in split.test if item.class_name in names]
            adapted = adapt.load(finished / f"seed-{seed}/adapter.safetensors", class_names=names)
            baseline = adapt.wrap(adapt.load_backbone(str(model_folder)), methods.ZeroShot("{} texture."), names)
            expected[half] = by_hand(adapted, items, first)
            expected[f"zero_shot_{half}"] = by_hand(baseline, items, first)
        assert row == expected
    assert len(set(expected.values())) == 5  # no figure could stand for another


@pytest.mark.parametrize("seed", SEEDS)
def test_training_sees_the_base_part_of_the_seeds_picks(finished: Path, split: Split, seed: int) -> None:
    metrics = json.loads((finished / f"seed-{seed}/metrics.json").read_text())
    picks = [item for item in split.few_shot(2, seed).train if item.label < 3]
    assert (metrics["train_images"], metrics["train_set"]) == (6, items_id(picks))
    header = adapt.adapter.read_header(finished / f"seed-{seed}/adapter.safetensors")
    assert header.class_names == NAMES[:3]
    assert (header.seed, header.recipe["seed"], header.recipe["data"]["classes"]) == (seed, seed, "base")


@pytest.mark.parametrize("half", ["base", "new"])
def test_a_recipe_of_one_half_reads_its_part_of_the_picks(raw: dict[str, Any], split: Split, half: Any) -> None:
    recipe = build_recipe(raw | {"data": raw["data"] | {"classes": half}, "seed": 2}, "half")
    assert read_data(recipe) == split.few_shot(2, seed=2).only(half)


def test_json_and_csv_and_what_is_returned_agree(out: Path, recipe: Recipe) -> None:
    returned, found = base_to_new(recipe, SEEDS, out), read(out)
    rows = list(csv.DictReader((out / "base_to_new.csv").open()))
    assert list(rows[0]) == ["seed", "base", "new", "zero_shot_base", "zero_shot_new"]
    assert [{key: float(value) for key, value in row.items()} for row in rows] == found["seeds"]
    assert returned == found
    assert build_recipe(found["recipe"], "found") == recipe
    for key in ("base", "new", "zero_shot_base", "zero_shot_new"):
        values = [float(row[key]) for row in rows]
        assert (found["mean"][key], found["std"][key]) == (statistics.mean(values), statistics.stdev(values))


def row(base: float, new: float) -> dict[str, Any]:
    return {"seed": 1, "base": base, "new": new, "zero_shot_base": base / 2, "zero_shot_new": new / 2}


def test_the_harmonic_mean_is_that_of_the_averaged_accuracies() -> None:
    found = summary([row(0.8, 0.4), row(0.6, 0.2)])
    assert found["mean"] == pytest.approx(
        {
            "base": 0.7,
            "new": 0.3,
            "harmonic": 0.42,  # the mean of the two harmonic means is 0.417
            "zero_shot_base": 0.35,
            "zero_shot_new": 0.15,
            "zero_shot_harmonic": 0.21,
        }
    )
    assert found["std"]["base"] == pytest.approx(0.1414, abs=1e-4)
    assert found["std"]["harmonic"] == pytest.approx((0.8 * 0.4 / 0.6 - 0.3) / 2**0.5)


def test_one_seed_has_no_spread() -> None:
    assert set(summary([row(0.8, 0.4)])["std"].values()) == {0.0}


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [(69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (84.26, 76.10, 79.97), (0.0, 50.0, 0.0), (50.0, 0.0, 0.0)],
)
def test_harmonic_means_of_the_papers(base: float, new: float, expected: float) -> None:
    assert harmonic(base, new) == pytest.approx(expected, abs=0.005)


def test_a_finished_protocol_is_read_again(
    out: Path, recipe: Recipe, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(out)
    monkeypatch.setattr(f"{MODULE}.evaluate", None)
    told: list[str] = []
    assert base_to_new(recipe, SEEDS, out, told.append) == json.loads(before["base_to_new.json"])
    assert trained == []
    assert contents(out) == before
    shown = [f"seed {row['seed']}: base {100 * row['base']:.1f} %, new {100 * row['new']:.1f} %" for row in read(out)["seeds"]]
    assert told == shown


def test_another_seed_is_added_to_those_that_are_there(out: Path, recipe: Recipe, trained: list[int]) -> None:
    before = read(out)["seeds"]
    found = base_to_new(recipe, (*SEEDS, 3), out)
    assert trained == [3]
    assert found["seeds"][:2] == before
    assert [row["seed"] for row in read(out)["seeds"]] == [1, 2, 3]


def test_a_protocol_interrupted_while_it_trains_goes_on(
    finished: Path, recipe: Recipe, trained: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = Run.log

    def log_and_stop(self: Run, entry: dict[str, Any]) -> None:
        log(self, entry)
        if self.path.name == "seed-2" and entry["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "log", log_and_stop)
        base_to_new(recipe, SEEDS, tmp_path / "cut")
    assert not (tmp_path / "cut/base_to_new.json").exists()
    assert base_to_new(recipe, SEEDS, tmp_path / "cut") == read(finished)
    assert trained == [1, 2, 2]
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/seed-2/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_protocol_interrupted_between_seeds_goes_on(
    finished: Path, recipe: Recipe, trained: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base_to_new(recipe, SEEDS, tmp_path / "cut", stop)
    assert trained == [1]
    assert base_to_new(recipe, SEEDS, tmp_path / "cut") == read(finished)
    assert trained == [1, 2]


def test_a_protocol_interrupted_while_it_measures_trains_nothing_again(
    out: Path, finished: Path, recipe: Recipe, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "seed-2/base_to_new.json").unlink()

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"{MODULE}.evaluate", stop)
        base_to_new(recipe, SEEDS, out)
    assert base_to_new(recipe, SEEDS, out) == read(finished)
    assert trained == []


@pytest.mark.parametrize("gone", ["base_to_new.json", "metrics.json"], ids=["measured", "trained"])
@pytest.mark.parametrize("part", ["nothing", "the figures", "the end of the run"])
def test_a_run_of_another_recipe_is_refused(
    out: Path, raw: dict[str, Any], trained: list[int]
) -> None:
    ...
