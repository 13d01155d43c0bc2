"""Questions about images from a CSV, on the bundled language model: train, eval, predict and chat."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import adapt
from adapt.cli import main

QUESTION = "what colour is it?"
ANSWERS = {"goldfish": "red", "lime tree": "green", "sky": "blue"}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "question", "label", "split"])
        for part in ("train", "val", "test"):
            for name, answer in ANSWERS.items():
                rows.writerow([f"{part}/{name}/0.png", QUESTION, answer, part])
    return path


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory, questions: Path, photos: Path) -> Path:
    """The run directory of a small VLoRA that learnt three questions."""
    folder = tmp_path_factory.mktemp("vlora")
    recipe = folder / "vlora.yaml"
    recipe.write_text(
        "method: {name: vlora, dim: 16, depth: 1, rank: 2, heads: 4, skip: 3}\nbackbone: mini-clip+mini-lm\n"
        f"data: {{source: {questions}, root: {photos}, shots: null}}\n"
        "train: {iterations: 60, batch_size: 3, optimizer: adamw, lr: 0.005, "
        "schedule: cosine_iteration, augment: none, workers: 0}\n"
    )
    result = CliRunner().invoke(main, ["train", str(recipe), "--out", str(folder / "run"), "--quiet"])
    assert (result.exit_code, result.stderr) == (0, "")
    return folder / "run"


@pytest.mark.full
def test_it_learns_what_the_language_model_alone_cannot_know(speaking: Path) -> None:
    metrics = json.loads((speaking / "metrics.json").read_text())
    assert metrics["adapted"]["accuracy"] == 1
    assert metrics["zero_shot"]["accuracy"] < 1
    predicted = list(csv.DictReader((speaking / "predictions.csv").open()))
    assert [row["predicted"] for row in predicted] == list(ANSWERS.values())


def test_eval_asks_the_same_questions(run: Run, speaking: Path, questions: Path, photos: Path) -> None:
    result = run("eval", speaking / "adapter.safetensors", "--data", questions, "--root", photos)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "100.0 % (43.9 to 100.0) of 3 test questions of questions (3 answers), balanced 100.0 % (43.9 to 100.0)\n"
        "in brackets: 95 % confidence interval; only rough with fewer than 100 images\n"
        "measured: 3 test questions of 9 (train 3, val 3; --part all measures all)\n"
    )


def test_predict_and_chat_answer(run: Run, speaking: Path, photos: Path) -> None:
    adapter, image = speaking / "adapter.safetensors", photos / "test/sky/0.png"
    lines = run("predict", adapter, image, "--question", QUESTION).stdout.splitlines()
    assert lines[0] == str(image)
    assert lines[1].endswith("%  blue")
    assert run("chat", adapter, image, "--question", QUESTION).stdout == f"{QUESTION}  blue\n"
    typed = CliRunner().invoke(main, ["chat", str(adapter), str(image)], input=f"{QUESTION}\n\nnot asked\n")
    said = [line for line in typed.stdout.splitlines() if line.strip() not in ("", QUESTION)]  # which click may echo
    assert (typed.exit_code, said) == (0, ["blue"])


def test_inspect_names_both_towers(run: Run, speaking: Path) -> None:
    text = run("inspect", speaking / "adapter.safetensors").stdout
    assert "mini-clip+mini-lm (64 px, photographs turned upright)" in text
    assert "classes" not in text.split("parameters")[0].replace("all classes", "")


def test_questions_and_classes_are_not_mixed(
    run: Run, refused: Callable[..., None], speaking: Path, adapter: Path, questions: Path, photos: Path
) -> None:
    speaks, image = speaking / "adapter.safetensors", photos / "test/sky/0.png"
    refused(run("predict", speaks, image), "answers questions about images, but there is no question")
    refused(run("predict", adapter, image, "--question", QUESTION), "cannot answer a question: leave question out")
    refused(run("predict", speaks, image, "--question", QUESTION, "--classes", "a,b"), "leave class_names out")
    refused(run("chat", adapter, image), "is for a dual encoder, which cannot chat")
    refused(
        run("eval", speaks, "--data", photos),
        "the data are images with one class each, but mini-clip+mini-lm is a vision LLM: use a dual encoder or a",
    )
    classifying = ("--set=method={name: coop}", "--set=backbone=mini-clip", "--set=data.shots=1")
    refused(
        run("train", speaking / "recipe.yaml", *classifying),
        "contains questions about images, but coop learns classes: give a list with the columns label, or use one of ",
    )


def test_a_quantised_backbone_by_recipe(run: Run, speaking: Path, tmp_path: Path) -> None:
    changed = ("--set=quantize=nf4", "--set=train.iterations=2")
    result = run("train", speaking / "recipe.yaml", *changed, "--out", tmp_path / "run", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    adapter = tmp_path / "run/adapter.safetensors"
    assert "px, photographs turned upright, nf4)" in run("inspect", adapter).stdout
    assert adapt.load(adapter).backbone.quantization == "nf4"
