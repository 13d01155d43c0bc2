"""Protocols: what is measured, what is not done twice, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checks import by_hand, contents
from stopping import interrupt, stopped_at

import adapt
from adapt import AdaptError, methods
from adapt.data import Split
from adapt.data.item import items_id
from adapt.protocols import protocol as protocols
from adapt.protocols.protocol import run_protocol, summaries
from adapt.recipe import Recipe, build_recipe
from adapt.training.run_recipe import read_data

SEEDS = (1, 2)
NAMES = ("goldfish", "lime tree", "red panda", "sky", "tin can")
MODULE = "adapt.protocols.runs"


def base_to_new(recipe: Recipe, seeds: Sequence[int], out: Path, progress: Any = None) -> dict[str, Any]:
    return run_protocol(protocols.base_to_new(recipe, seeds), out, progress=progress)


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


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "base_to_new.json").read_text())
    return found


def test_each_half_is_measured_among_its_own_names(finished: Path, split: Split, model_folder: Path) -> None:
    halves = {"base": NAMES[:3], "new": NAMES[3:]}
    for seed, row in zip(SEEDS, read(finished)["runs"]):
        expected: dict[str, Any] = {}
        for half, names in halves.items():
            items = [item for item in split.test if item.answer in names]
            adapted = adapt.load(finished / f"seed-{seed}/adapter.safetensors", class_names=names)
            baseline = adapt.wrap(adapt.load_backbone(str(model_folder)), methods.ZeroShot("{} texture."), names)
            expected[half] = by_hand(adapted, items)
            expected[f"zero_shot_{half}"] = by_hand(baseline, items)
        assert {key: row[key] for key in expected} == expected
        assert (row["run"], row["shots"], row["seed"]) == (f"seed-{seed}", 2, seed)
    assert len(set(expected.values())) == 4  # no figure could stand for another


@pytest.mark.parametrize("seed", SEEDS)
def test_training_sees_the_base_part_of_the_seeds_picks(finished: Path, split: Split, seed: int) -> None:
    metrics = json.loads((finished / f"seed-{seed}/metrics.json").read_text())
    picks = [item for item in split.few_shot(2, seed).train if item.answer in NAMES[:3]]
    assert (metrics["train_images"], metrics["train_set"]) == (6, items_id(picks))
    header = adapt.formats.adapter.read_header(finished / f"seed-{seed}/adapter.safetensors")
    assert header.class_names == NAMES[:3]
    assert (header.seed, header.recipe["seed"], header.recipe["data"]["classes"]) == (seed, seed, "base")


@pytest.mark.parametrize("half", ["base", "new"])
def test_a_recipe_of_one_half_reads_its_part_of_the_picks(raw: dict[str, Any], split: Split, half: Any) -> None:
    recipe = build_recipe(raw | {"data": raw["data"] | {"classes": half}, "seed": 2}, "half")
    assert read_data(recipe) == split.few_shot(2, seed=2).only(half)


def test_json_and_csv_and_what_is_returned_agree(out: Path, recipe: Recipe) -> None:
    returned, found = base_to_new(recipe, SEEDS, out), read(out)
    rows = list(csv.DictReader((out / "base_to_new.csv").open()))
    assert list(rows[0]) == list(found["runs"][0])
    assert [{key: str(value) for key, value in row.items()} for row in found["runs"]] == rows
    assert returned == found
    assert build_recipe(found["recipe"], "found") == recipe
    (summary,) = found["summary"]
    assert (summary["shots"], summary["runs"]) == (2, 2)
    for key in ("base", "new"):
        values = [row[key] for row in found["runs"]]
        assert (summary["mean"][key], summary["std"][key]) == (statistics.mean(values), statistics.stdev(values))
        assert summary["zero_shot"][key] == found["runs"][0][f"zero_shot_{key}"]


def figures(base: float, new: float) -> dict[str, Any]:
    return {"shots": 2, "base": base, "new": new, "zero_shot_base": base / 2, "zero_shot_new": new / 2}


def test_the_harmonic_mean_is_that_of_the_averaged_accuracies(recipe: Recipe) -> None:
    (found,) = summaries(protocols.base_to_new(recipe, SEEDS), [figures(0.8, 0.4), figures(0.6, 0.2)])
    # the mean of the two harmonic means is 0.417
    assert found["mean"] == pytest.approx({"base": 0.7, "new": 0.3, "harmonic": 0.42})
    assert found["zero_shot"] == pytest.approx({"base": 0.35, "new": 0.15, "harmonic": 0.21})
    assert found["std"]["base"] == pytest.approx(0.1414, abs=1e-4)
    assert found["std"]["harmonic"] == pytest.approx((0.8 * 0.4 / 0.6 - 0.3) / 2**0.5)


def test_one_seed_has_no_spread(recipe: Recipe) -> None:
    (found,) = summaries(protocols.base_to_new(recipe, (1,)), [figures(0.8, 0.4)])
    assert set(found["std"].values()) == {0.0}


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [(69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (84.26, 76.10, 79.97), (0.0, 50.0, 0.0), (50.0, 0.0, 0.0)],
)
def test_harmonic_means_of_the_papers(recipe: Recipe, base: float, new: float, expected: float) -> None:
    derived = protocols.base_to_new(recipe, (1,)).derive({"base": base, "new": new})
    assert derived == {"harmonic": pytest.approx(expected, abs=0.005)}


def test_a_finished_protocol_is_read_again(
    out: Path, recipe: Recipe, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(out)
    monkeypatch.setattr(f"{MODULE}.evaluate", None)
    told: list[str] = []
    assert base_to_new(recipe, SEEDS, out, told.append) == json.loads(before["base_to_new.json"])
    assert trained == []
    assert contents(out) == before
    shown = [
        f"{i} of 2  {row['run']}: base {100 * row['base']:.1f} %, new {100 * row['new']:.1f} %"
        for i, row in enumerate(read(out)["runs"], 1)
    ]
    assert told == shown


def test_another_seed_is_added_to_those_that_are_there(out: Path, recipe: Recipe, trained: list[int]) -> None:
    before = read(out)["runs"]
    found = base_to_new(recipe, (*SEEDS, 3), out)
    assert trained == [3]
    assert found["runs"][:2] == before
    assert [row["seed"] for row in read(out)["runs"]] == [1, 2, 3]


def test_a_protocol_interrupted_while_it_trains_goes_on(
    finished: Path, recipe: Recipe, trained: list[int], tmp_path: Path
) -> None:
    with stopped_at(2, interrupt, run="seed-2"):
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
    (out / "seed-2/targets.json").unlink()

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{MODULE}.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            base_to_new(recipe, SEEDS, out)
    assert base_to_new(recipe, SEEDS, out) == read(finished)
    assert trained == []


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param((), id="measured"),
        pytest.param(("targets.json",), id="trained"),
        pytest.param(("targets.json", "metrics.json"), id="started"),
    ],
)
def test_a_run_of_another_recipe_is_refused_and_stays(
    out: Path, raw: dict[str, Any], trained: list[int], gone: tuple[str, ...]
) -> None:
    for name in gone:
        (out / "seed-1" / name).unlink()
    before = contents(out)
    other = build_recipe(raw | {"data": raw["data"] | {"template": "a photo of a {}."}}, "other")
    with pytest.raises(AdaptError, match=r"holds results of another recipe: choose another --out"):
        base_to_new(other, SEEDS, out)
    assert contents(out) == before


@pytest.mark.parametrize(
    "method", [{"name": "linear_probe", "strength": 1.0}, {"name": "coop", "n_ctx": 2, "class_specific": True}]
)
def test_tensors_of_single_classes_are_refused_before_anything_is_trained(
    raw: dict[str, Any], trained: list[int], tmp_path: Path, method: dict[str, Any]
) -> None:
    settings = {} if method["name"] == "linear_probe" else {"train": raw["train"]}
    given = {key: value for key, value in raw.items() if key != "train"} | settings | {"method": method}
    message = f"{method['name']} learns tensors for each of its classes and cannot classify new classes"
    with pytest.raises(AdaptError, match=message):
        base_to_new(build_recipe(given, "given"), SEEDS, tmp_path / "none")
    assert trained == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)], ids=str)
def test_seeds_must_be_different_numbers(
    recipe: Recipe, trained: list[int], tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    with pytest.raises(AdaptError, match="seed"):
        base_to_new(recipe, seeds, tmp_path / "none")
    assert trained == []
    assert not (tmp_path / "none").exists()


def test_data_without_new_classes_are_refused_before_anything_is_trained(
    raw: dict[str, Any], five_classes: Path, trained: list[int], tmp_path: Path
) -> None:
    for part in ("train", "test"):
        shutil.copytree(five_classes / part / "sky", tmp_path / "one" / part / "sky")
    recipe = build_recipe(raw | {"data": {"source": str(tmp_path / "one"), "shots": 2}}, "one")
    with pytest.raises(AdaptError, match="'one' has 1 class, so the part 'new' of the classes is empty"):
        base_to_new(recipe, SEEDS, tmp_path / "none")
    assert trained == []


@pytest.mark.parametrize("without", [NAMES, NAMES[:3], NAMES[3:]], ids=["all", "base", "new"])
def test_classes_without_test_images_are_refused_before_anything_is_trained(
    raw: dict[str, Any], five_classes: Path, trained: list[int], tmp_path: Path, without: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(five_classes, tmp_path / "data"))
    for name in without:
        shutil.rmtree(folder / "test" / name)
    if without == NAMES:
        (folder / "test").rmdir()
        shutil.copytree(folder / "train", folder / "val")  # a folder of train/ alone would be one of classes
    recipe = build_recipe(raw | {"data": {"source": str(folder), "shots": 2}}, "given")
    with pytest.raises(AdaptError, match="test images"):
        base_to_new(recipe, SEEDS, tmp_path / "none")
    assert trained == []


def test_several_processes_do_not_make_many_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AdaptError, match="several processes were launched"):
        run_protocol(None, tmp_path)
    with pytest.raises(AdaptError, match="several processes were launched"):
        adapt.recommend("emoji", out=tmp_path / "run", backbone="mini-clip", progress=False)
    assert not list(tmp_path.iterdir())
