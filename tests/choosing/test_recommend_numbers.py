"""`adapt recommend` for numbers and for several labels: the figures of the task, beside its baseline."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import adapt
from adapt.choosing import recommendation as module
from adapt.choosing.candidates import candidates
from adapt.cli import main
from adapt.evaluation.numbers import GradedScores


def listing(folder: Path, count: int = 24, told: bool = True) -> Path:
    """Grey pictures whose target is the brightness to the power of three, or is drawn from nothing."""
    rows, stream = ["path,target,split"], torch.Generator().manual_seed(0)
    for number in range(count):
        grey = (number * 37) % 240
        Image.new("RGB", (40, 40), (grey, grey, 60)).save(folder / f"{number}.png")
        target = (grey / 40) ** 3 if told else float(torch.rand((), generator=stream))
        rows.append(f"{number}.png,{target:.4f},{'test' if number % 4 == 3 else 'train'}")
    (folder / "grades.csv").write_text("\n".join(rows) + "\n")
    return folder / "grades.csv"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["recommend", *map(str, arguments), "--backbone", "mini-clip", "--quiet"])


def test_numbers_are_compared_by_their_error_beside_that_of_the_mean(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(listing(tmp_path), "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "recommendation.json").read_text())
    rows = {row["method"]: row for row in found["methods"]}
    assert {"ridge", "kernel_ridge", "mean"} <= rows.keys() | found["left_out"].keys()
    assert not {"lda", "linear_probe", "zero_shot", "gda"} & (rows.keys() | found["left_out"].keys())
    errors = [row["mean_absolute_error"] for row in found["methods"]]
    assert errors == sorted(errors)
    assert rows[found["chosen"]]["mean_absolute_error"] < 0.5 * rows["mean"]["mean_absolute_error"]
    assert rows["mean"]["r2"] < 0 < rows[found["chosen"]]["spearman"]
    assert (found["tried_images"], found["folds"]) == (18, 5)  # though the highest word has few images
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["adapted"]["mean_absolute_error"] < metrics["zero_shot"]["mean_absolute_error"]
    assert metrics["baseline"] == "mean"
    shown = result.stdout
    assert "MAE" in shown.splitlines()[0]
    assert "Spearman" in shown.splitlines()[0]
    assert f"On the 6 test images, which played no part in the choice: {metrics['adapted']['text']}." in shown
    assert "MAE on new images, between " in shown
    assert "accuracy" not in shown
    [command] = [line for line in shown.splitlines() if line.startswith("To train it again: ")]
    again = CliRunner().invoke(main, shlex.split(command)[5:], catch_exceptions=False)
    assert f"adapted    {metrics['adapted']['text']}" in again.stdout
    table = list(csv.DictReader((out / "methods.csv").open()))
    assert [float(row["mean_absolute_error"]) for row in table] == errors
    page = (out / "report.html").read_text()
    assert "MAE by cross-validation over 5 folds" in page
    assert f"<td>{errors[0]:.4g}</td>" in page
    assert metrics["adapted"]["text"] in page


@pytest.mark.full
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_it_says_so_where_images_do_not_tell_the_number(tmp_path: Path) -> None:
    result = run(listing(tmp_path, told=False), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "No method is more than two standard errors better than the mean" in result.stdout


@pytest.mark.full
def test_numbers_on_a_vision_encoder(tmp_path: Path) -> None:
    found = adapt.recommend(str(listing(tmp_path)), backbone="vision:mini-clip", progress=False)
    assert found.chosen in ("ridge", "kernel_ridge")
    assert found.figure == GradedScores.compared_by
    [row] = [row for row in found.rows if row["method"] == found.chosen]
    assert found.estimate == (row["mean_absolute_error"], row["error"])
    ends = [max(0, found.estimate[0] + side * row["error"]) for side in (-1.96, 1.96)]
    assert found.interval == pytest.approx(ends, rel=1e-3)


def test_the_error_of_a_mean_absolute_error_is_that_of_its_images() -> None:
    items: Any = [type("Item", (), {"name": "x", "class_names": ("a",), "answer": "a", "kept_with": "x"})] * 4
    answers = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]])
    scores = GradedScores.of(items, answers, torch.tensor([1.0, 3.0, 3.0, 1.0]), ["a"])
    assert scores.merits.tolist() == [0, -1, 0, -3]
    assert scores.figures()["mean_absolute_error"] == 1.0


def test_several_labels_are_compared_by_mean_average_precision(tmp_path: Path, monkeypatch: Any) -> None:
    listed = []

    def some(*given: Any) -> Any:
        listed.extend(every := candidates(*given))
        return [each for each in every if each.name in ("zero_shot", "task_res")]

    monkeypatch.setattr(module, "candidates", some)
    lines = ["path,labels,split"]
    colours = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
    names = ["red", "green", "blue", "red|blue", "green|blue", "red|green|blue", "", "red|green"]
    for number in range(32):
        own = names[number % 8].split("|") if names[number % 8] else []
        picture = Image.new("RGB", (48, 48), (99 + number,) * 3)
        for place, name in enumerate(own):
            picture.paste(colours[name], (16 * place, 8, 16 * place + 14, 8 + 10 + number))
        picture.save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{names[number % 8]},{'test' if number >= 24 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    result = run(tmp_path / "list.csv", "--out", tmp_path / "out", "--set", "train.epochs=5")
    assert result.exit_code == 0, result.output
    assert {"zero_shot", "task_res", "coop", "clip_adapter"} <= {each.name for each in listed}
    assert {"nearest_mean", "knn", "linear_probe"} <= {each.name for each in listed}
    assert not {"lda", "gda", "tip_adapter", "ridge"} & {each.name for each in listed}
    found = json.loads((tmp_path / "out/recommendation.json").read_text())
    assert {row["method"] for row in found["methods"]} | found["left_out"].keys() == {"zero_shot", "task_res"}
    assert all(0 < row["mean_average_precision"] <= 1 for row in found["methods"])
    assert "mAP, %" in result.stdout
    assert "% mAP on new images" in result.stdout
    assert "mAP on the 8 test images, which played no part in the choice: " in result.stdout
    assert "calibrate" not in found["methods"][0]["command"]
    assert not (tmp_path / "out/confused.csv").exists()
    assert found["figure"]["title"] == "mAP"
    for row in found["methods"]:
        assert row["low"] == pytest.approx(max(0, row["mean_average_precision"] - 1.96 * row["error"]), rel=1e-4)
    low, high = found["test"]["intervals"]["mean_average_precision"]
    assert low < found["test"]["mean_average_precision"] < high
    measured, said = (
        json.loads(CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False).stdout)
        for words in (
            ["eval", str(tmp_path / "out"), "--data", str(tmp_path / "list.csv")],
            ["predict", str(tmp_path / "out"), str(tmp_path / "3.png")],
        )
    )
    assert measured["mean_average_precision"] == pytest.approx(found["test"]["mean_average_precision"])
    assert set(said["classes"]) <= set(colours)
