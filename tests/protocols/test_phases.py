"""Phases: each goes on from the last one's adapter, and what the parts before still give."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import adapt
from adapt import AdaptError
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.formats.adapter import read_header
from adapt.protocols import protocol as protocols
from adapt.protocols.protocol import run_protocol
from adapt.protocols.tables import read_results, table
from adapt.recipe import DataSection, Recipe

FIGURES = ["1 after 1", "1 after 2", "2 after 2", "1 after 3", "2 after 3", "3 after 3"]


def parts(recipe: Recipe, count: int) -> list[DataSection]:
    return [recipe.data.model_copy(update={"classes": f"{part}/{count}"}) for part in range(1, count + 1)]


@pytest.mark.parametrize(("classes", "names"), [("1/2", 3), ("2/2", 2), ("1/3", 2), ("3/3", 1), ("5/5", 1)])
def test_parts_of_classes_are_consecutive(split: Split, classes: str, names: int) -> None:
    number, count = map(int, classes.split("/"))
    found = split.only(classes)
    assert len(found.class_names) == names
    before = sum(len(split.only(f"{each}/{count}").class_names) for each in range(1, number))
    assert found.class_names == split.class_names[before : before + names]
    assert {item.answer for item in found.train} == set(found.class_names)
    assert split.only("base") == split.only("1/2")
    assert split.only("new") == split.only("2/2")


@pytest.mark.parametrize("classes", ["3/2", "6/6"])
def test_a_part_that_there_is_not(split: Split, classes: str) -> None:
    with pytest.raises(AdaptError, match=f"has 5 classes, so the part '{classes}' of the classes is empty"):
        split.only(classes)


@pytest.mark.full
def test_each_phase_goes_on_from_the_last(recipe: Recipe, split: Split, trained: list[int], tmp_path: Path) -> None:
    found = run_protocol(protocols.phases(recipe, parts(recipe, 3), (4,)), tmp_path)
    (row,) = found["runs"]
    for phase in (1, 2, 3):
        folder = tmp_path / f"phase-{phase}-seed-4"
        start = None if phase == 1 else str(tmp_path / f"phase-{phase - 1}-seed-4/adapter.safetensors")
        assert read_header(folder / "adapter.safetensors").recipe["start"] == start
        model = adapt.load(folder / "adapter.safetensors")
        for part in range(1, phase + 1):
            of_part = split.only(f"{part}/3")
            accuracy = evaluate(model.with_classes(of_part.class_names), of_part.test).accuracy
            assert row[f"{part} after {phase}"] == accuracy
    last = row["1 after 3"] / (row["1 after 1"] or 1), row["2 after 3"] / (row["2 after 2"] or 1)
    assert found["summary"][0]["mean"]["kept"] == pytest.approx(statistics.mean(last))
    assert table([found])[0] == ["", *FIGURES, "kept"]
    assert read_results(tmp_path) == [json.loads((tmp_path / "phases.json").read_text())]
    elsewhere = Path(shutil.move(tmp_path, tmp_path.with_name("moved")))
    again = run_protocol(protocols.phases(recipe, parts(recipe, 3), (4,)), elsewhere)
    assert trained == [4, 4, 4]
    assert again["runs"] == found["runs"]


def test_a_phase_is_not_read_after_the_one_before_it_was_trained_again(recipe: Recipe, tmp_path: Path) -> None:
    phases = protocols.phases(recipe, parts(recipe, 2), (4,))
    found = run_protocol(phases, tmp_path)
    assert run_protocol(phases, tmp_path) == found
    first = tmp_path / "phase-1-seed-4/adapter.safetensors"
    model = adapt.load(first)
    with torch.no_grad():
        next(model.method.parameters()).add_(0.1)
    first.unlink()
    model.save(first)
    with pytest.raises(
        AdaptError, match=r"that it goes on from was trained again since the run in .*phase-2-seed-4: del"
    ):
        run_protocol(phases, tmp_path)


def test_a_method_with_tensors_of_classes_is_refused(recipe: Recipe, raw: dict[str, Any]) -> None:
    of_classes = recipe.model_copy(update={"method": {"name": "task_res"}})
    with pytest.raises(AdaptError, match="learns tensors for each of its classes"):
        run_protocol(protocols.phases(of_classes, parts(recipe, 2), (1,)), Path("nowhere"))


@pytest.mark.parametrize("name", ["prolip", "two_stage"])
def test_a_method_that_cannot_go_on_is_refused_before_the_first_phase(
    name: str, recipe: Recipe, trained: list[int], tmp_path: Path
) -> None:
    other = recipe.model_copy(update={"method": {"name": name}} | ({"train": None} if name == "prolip" else {}))
    with pytest.raises(AdaptError, match="omit start"):
        run_protocol(protocols.phases(other, parts(recipe, 2), (1,)), tmp_path)
    assert trained == []


def test_one_phase_is_none(recipe: Recipe) -> None:
    with pytest.raises(AdaptError, match="phases; expected two or more"):
        protocols.phases(recipe, [recipe.data], (1,))
