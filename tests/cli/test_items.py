"""Items of several images on the command line: `predict` of a list and of folders, and `eval`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

import adapt


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs, beside which lists may be written."""
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def listed(own_photos: Path) -> Path:
    """A list of three items of two photographs each, whose lines do not follow each other."""
    path = own_photos / "listed.csv"
    lines = [f"test/{name}/{number}.png,{name} item,{name}" for number in range(2) for name in ("sky", "goldfish")]
    path.write_text("\n".join(["path,item,label", *lines, "test/lime tree/0.png,lime,lime tree"]))
    return path


def test_a_list_of_items_gets_an_answer_each(run, adapter: Path, listed: Path, own_photos: Path) -> None:
    model = adapt.load(adapter)
    items = [[own_photos / f"test/{name}/{number}.png" for number in range(2)] for name in ("sky", "goldfish")]
    predictions = model.predict_items([*items, [own_photos / "test/lime tree/0.png"]])
    found = [json.loads(line) for line in run("predict", adapter, listed, "--json").stdout.splitlines()]
    assert [each["item"] for each in found] == ["sky item", "goldfish item", "lime"]
    assert [each["class"] for each in found] == [each.class_name for each in predictions]
    assert found[0]["images"] == [
        {"image": f"test/sky/{number}.png", "weight": 0.5, "probability": pytest.approx(own.probability)}
        for number, own in enumerate(predictions[0].images)
    ]
    rows = list(csv.DictReader(run("predict", adapter, listed, "--csv").stdout.splitlines()))
    assert [row["item"] for row in rows] == ["sky item", "goldfish item", "lime"]
    assert [row["class"] for row in rows] == [each.class_name for each in predictions]


def test_a_list_names_views_by_which_an_adapter_weighs(
    run, refused, model_folder: Path, listed: Path, tmp_path: Path
) -> None:
    rows = listed.read_text().splitlines()
    views = ["view", "front", "front", "side", "side", "front"]
    listed.write_text("\n".join(f"{row},{view}" for row, view in zip(rows, views, strict=True)))
    split = adapt.data.load(listed)
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.ABMIL(by="view"), split.class_names)
    items = tuple(split.items())
    adapt.fit(model, items, lr=0.1, optimizer="adam", epochs=3, batch_size=4, progress=False)
    adapter = model.save(tmp_path / "views.safetensors")
    result = run("predict", adapter, listed, "--json")
    assert result.exit_code == 0, result.output
    weights = [[each["weight"] for each in json.loads(line)["images"]] for line in result.stdout.splitlines()]
    front, side = model.method.view_scores.softmax(0).tolist()
    assert front != side
    assert weights[0] == weights[1] == pytest.approx([front, side], abs=1e-5)
    result = run("eval", adapter, "--data", listed, "--part", "all")
    assert result.exit_code == 0, result.output
    listed.write_text(listed.read_text().replace(",side", ",top"))
    for command in (["predict", adapter, listed], ["eval", adapter, "--data", listed, "--part", "all"]):
        refused(run(*command), "has the view 'top', which no training image has")


def test_folders_are_items_if_asked(run, adapter: Path, own_photos: Path) -> None:
    found = [
        json.loads(line)
        for line in run("predict", adapter, own_photos / "test", "--items", "--json").stdout.splitlines()
    ]
    assert [each["item"] for each in found] == [
        str(own_photos / "test" / name) for name in ("goldfish", "lime tree", "sky")
    ]
    assert [len(each["images"]) for each in found] == [2, 2, 2]


def test_an_image_that_cannot_be_read_is_left_out_of_its_item(
    run, adapter: Path, own_photos: Path, tmp_path: Path
) -> None:
    for item, image in (("one", "broken"), ("two", "broken")):
        (tmp_path / "things" / item).mkdir(parents=True)
        (tmp_path / "things" / item / f"{image}.png").write_bytes(b"no image")
    (tmp_path / "things/two/0.png").write_bytes((own_photos / "test/sky/0.png").read_bytes())
    result = run("predict", adapter, tmp_path / "things", "--items", "--json")
    assert result.exit_code == 2
    assert "2 of 3 images could not be read" in result.stderr
    [only] = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["image"] for each in only["images"]] == [str(tmp_path / "things/two/0.png")]


def test_lists_may_have_items_of_the_same_name(run, adapter: Path, own_photos: Path) -> None:
    for name in ("sky", "goldfish"):
        (own_photos / f"{name}.csv").write_text(f"path,item\ntest/{name}/0.png,1\ntest/{name}/1.png,1\n")
    result = run("predict", adapter, own_photos / "sky.csv", own_photos / "goldfish.csv", "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(each["item"], len(each["images"])) for each in found] == [("1", 2), ("1", 2)]


def test_items_go_with_no_other_way_to_answer(run, refused, adapter: Path, listed: Path) -> None:
    refused(run("predict", adapter, listed, "--items"), "--items takes folders")
    refused(
        run("predict", "--vocabulary-free", "x", listed.parent, "--items"), "--vocabulary-free cannot go with --items"
    )
    refused(run("predict", adapter, listed, "--together"), "items of several images cannot go with --together")


def test_eval_counts_items_and_images(run, adapter: Path, listed: Path) -> None:
    measured = json.loads(run("eval", adapter, "--data", listed, "--part", "all", "--json").stdout)
    assert (measured["images"], measured["by_image"]["images"]) == (3, 5)
    said = run("eval", adapter, "--data", listed, "--part", "all").stdout
    assert "of 3 items of listed" in said
    assert "of their 5 images, each by itself" in said
