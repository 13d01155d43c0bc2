"""Several classes an image, and regions, from the command line: trained, measured, predicted, reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {"goldfish": (230, 60, 40), "lime tree": (40, 200, 70), "sky": (50, 80, 220)}


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose halves have two of three colours, the names of both, and the boxes of the halves."""
    folder = tmp_path_factory.mktemp("several") / "street"
    folder.mkdir()
    labels, boxes = ["path,labels,split"], ["path,label,split,x0,y0,x1,y1"]
    names = list(COLOURS)
    for number, part in enumerate(["train"] * 6 + ["test"] * 3):
        two = names[number % 3], names[(number + 1) % 3]
        picture = Image.new("RGB", (40, 20), COLOURS[two[0]])
        picture.paste(COLOURS[two[1]], (20, 0, 40, 20))
        picture.save(folder / f"{number}.png")
        labels.append(f"{number}.png,{'|'.join(two)},{part}")
        boxes += [f"{number}.png,{name},{part},{20 * place},0,{20 * place + 20},20" for place, name in enumerate(two)]
    Image.new("RGB", (40, 20)).save(folder / "9.png")
    (folder / "labels.csv").write_text("\n".join([*labels, "9.png,,train"]) + "\n")
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(
        f"method: {{name: task_res, alpha: 1.0}}\nbackbone: {model_folder}\ndata: {{source: photos, shots: null}}\n"
        "train: {epochs: 60, augment: none, workers: 0, batch_size: 4, optimizer: adam, lr: 0.02}\n"
    )
    return path


def test_all_classes_of_an_image(run, refused, recipe: Path, street: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = run("train", recipe, "--data", street, "--out", out, "--quiet")
    assert trained.exit_code == 0, trained.output
    metrics = json.loads((out / "metrics.json").read_text())["adapted"]
    assert f"adapted    {100 * metrics['mean_average_precision']:5.1f} % mAP" in trained.output
    assert f"decisions  F1 {100 * metrics['f1']:.1f} %" in trained.output
    measured = json.loads(run("eval", out, "--data", street, "--json").stdout)
    assert measured["mean_average_precision"] == pytest.approx(metrics["mean_average_precision"])
    assert measured["by_class"].keys() == COLOURS.keys()
    assert run("eval", out, "--data", street).stdout.startswith("mAP ")
    assert run("zeroshot", "--data", street, "--backbone", measured["backbone"]).stdout.startswith("mAP ")
    said = {
        threshold: json.loads(run("predict", out, street / "0.png", "--json", "--threshold", threshold).stdout)
        for threshold in ("0", "1")
    }
    assert len(said["0"]["classes"]) == 3
    assert (said["1"]["classes"], said["1"]["class"]) == ([], "none")
    likeliest = said["0"]["top"][0]["class"]
    for threshold, classes in (("0", "|".join(said["0"]["classes"])), ("1", "none")):
        asked = ("predict", out, street / "0.png", "--csv", "--threshold", threshold)
        [row] = csv.DictReader(run(*asked).stdout.splitlines())
        assert list(row) == ["image", "class", "probability", "classes"]
        assert (row["class"], row["classes"]) == (likeliest, classes)
    lines = run("predict", out, street / "0.png", "--threshold", "0").stdout.splitlines()
    assert lines[0] == f"{street / '0.png'}  " + ", ".join(each["class"] for each in said["0"]["top"])
    assert "1.png,lime tree|sky" in (out / "train_images.csv").read_text()
    page = run("report", out, "--out", tmp_path / "report.html")
    assert page.exit_code == 0, page.output
    assert "Decisions: F1" in (tmp_path / "report.html").read_text()
    assert "average precision" in (tmp_path / "report.html").read_text()
    refused(run("export", out, "--to", "html", "--out", tmp_path / "page", "--runtime", tmp_path), "")
    refused(
        run("train", recipe, "--data", street, "--set", "method={name: gda}", "--set", "train=null"),
        "images with several classes each, or none, but gda learns classes: give a list with the columns label, ",
    )


def test_regions_are_images(run, refused, recipe: Path, street: Path, tmp_path: Path) -> None:
    out, boxes = tmp_path / "run", street / "boxes.csv"
    trained = run("train", recipe, "--data", boxes, "--out", out, "--quiet")
    assert trained.exit_code == 0, trained.output
    assert json.loads((out / "metrics.json").read_text())["adapted"]["accuracy"] == 1.0
    found = [json.loads(line) for line in run("predict", out, boxes, "--json").stdout.splitlines()]
    assert [each["class"] for each in found[:2]] == ["goldfish", "lime tree"]
    assert [each["image"] for each in found[:2]] == [f"0.png#xywh={left},0,20,20" for left in (0, 20)]
    unsure = run("predict", out, f"{street}/0.png#xywh=0,0,20,20", "--threshold", "1").stdout
    assert unsure.splitlines()[0].endswith("xywh=0,0,20,20  none")
    outside = tmp_path / "boxes.csv"
    outside.write_text(boxes.read_text() + "8.png,sky,test,30,0,41,20\n")
    told = run("data", "check", outside, "--root", street)
    assert told.exit_code == 2
    assert "8.png#xywh=30,0,11,20' is not inside its image, which is 40 x 20 pixels" in told.stdout
    refused(
        run("train", recipe, "--data", outside, "--root", street, "--out", tmp_path / "never"),
        "is not inside its image",
    )
    assert not (tmp_path / "never").exists()
