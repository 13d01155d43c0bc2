"""The adapters in checkpoints/adapters: small, loaded by their names, and as good as their card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import adapt
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.intervals import in_percent
from adapt.formats.adapter import read_header
from adapt.recipe import read_recipe
from adapt.training.run_recipe import read_data

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "checkpoints" / "adapters"
FILES = sorted(FOLDER.glob("*.safetensors"))
ROWS = {
    name: [cell.strip() for cell in cells.split("|")]
    for name, cells in re.findall(
        r"^\| \[(\w+)\]\(\w+\.md\) \|(.*)\|$", (FOLDER / "README.md").read_text(), re.MULTILINE
    )
}


def test_all_are_in_the_table_and_small() -> None:
    assert sorted(ROWS) == [file.stem for file in FILES]
    assert {"coop", "maple", "lora", "tip_adapter_f", "das", "vlora"} == set(ROWS)
    assert sum(file.stat().st_size for file in FILES) < 8 * 2**20


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_table_and_the_card_say_what_the_file_says(file: Path) -> None:
    made_by, backbone, size, before, adapted = ROWS[file.stem]
    header = read_header(file)
    recipe = read_recipe(
        *re.fullmatch("`adapt train (.+) --data .+`", made_by).groups(), data=header.recipe["data"]["source"]
    )
    assert recipe.method["name"] == header.method
    assert backbone == header.backbone == recipe.backbone
    assert size == f"{file.stat().st_size / 1024:.1f} KiB"
    for model, cell in (("zero_shot", before), ("adapted", adapted)):
        scores = header.metrics.get(model)
        expected = scores and f"{100 * scores['accuracy']:.1f} % ({in_percent(scores['intervals']['accuracy'])})"
        assert cell == (expected or "")
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{100 * header.metrics['adapted']['accuracy']:.1f} %" in card
    assert "hf_hub" not in card


@pytest.mark.parametrize("name", ["coop", "das"])
def test_it_answers_as_well_as_its_header_says(name: str) -> None:
    file = FOLDER / f"{name}.safetensors"
    metrics = read_header(file).metrics["adapted"]
    split = read_data(read_recipe("coop", data="emoji"))
    accuracy = evaluate(adapt.load(file), split.test).reported()["accuracy"]
    assert accuracy == pytest.approx(metrics["accuracy"], abs=2 / len(split.test))


@pytest.mark.parametrize("file", [file for file in FILES if file.stem != "vlora"], ids=lambda file: file.stem)
def test_it_classifies_the_picture_of_the_readme(file: Path) -> None:
    model = adapt.load(file)
    [prediction] = model.predict([ROOT / "notebooks" / "example.png"])
    assert prediction.class_name in model.class_names
    assert 1 / len(model.class_names) < prediction.probability <= 1


def test_vlora_answers_a_question() -> None:
    model = adapt.load(FOLDER / "vlora.safetensors")
    [prediction] = model.predict([ROOT / "notebooks" / "example.png"], question="what is this?")
    assert "flower" in prediction.class_name
