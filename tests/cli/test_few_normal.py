"""Anomaly detection from a few normal images, on folders made in the layouts of MVTec AD and VisA."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt import AdaptError
from adapt.data import load
from adapt.data.decoding.masks import mask_of
from adapt.evaluation.evaluate import evaluate
from adapt.loading import load as load_adapter
from adapt.protocols import papers
from adapt.protocols.tables import read_results, table_of_sets

SIDE = 32


def pictures(seed: int) -> tuple[list[Image.Image], list[tuple[Image.Image, np.ndarray]]]:
    """Six stripes, and four with a hole, each with the hole's place."""
    draw = np.random.default_rng(seed)
    stripes = np.broadcast_to((np.arange(SIDE) // 4 % 2 * 120 + 60)[None, :, None], (SIDE, SIDE, 3))
    of = [np.clip(stripes + draw.normal(0, 6, stripes.shape), 0, 255).astype(np.uint8) for _ in range(10)]
    broken = []
    for each in of[6:]:
        y, x = draw.integers(0, SIDE - 10, 2)
        hole = np.zeros((SIDE, SIDE), dtype=bool)
        hole[y : y + 10, x : x + 10] = True
        broken.append((Image.fromarray(np.where(hole[..., None], 255 - each, each)), hole))
    return [Image.fromarray(each) for each in of[:6]], broken


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    for number, name in enumerate(("grid", "tile")):
        good, broken = pictures(number)
        for place, picture in enumerate(good):
            folder = tmp_path / "mvtec" / name / ("train" if place < 3 else "test") / "good"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{place:03}.png")
        for part in ("test", "ground_truth"):
            (tmp_path / "mvtec" / name / part / "hole").mkdir(parents=True)
        for place, (picture, hole) in enumerate(broken):
            picture.save(tmp_path / "mvtec" / name / "test" / "hole" / f"{place:03}.png")
            mask = Image.fromarray(hole.astype(np.uint8) * 255)
            mask.save(tmp_path / "mvtec" / name / "ground_truth" / "hole" / f"{place:03}_mask.png")
    return tmp_path / "mvtec"


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """Two objects, whose masks have 1 and 3 in place of white."""
    rows = [["object", "split", "label", "image", "mask"]]
    for number, name in enumerate(("candle", "pcb1")):
        good, broken = pictures(number)
        for place, picture in enumerate(good):
            path = Path(name, "Data", "Images", "Normal", f"{place:04}.JPG")
            (tmp_path / "visa" / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "visa" / path, "PNG")
            rows.append([name, "train" if place < 3 else "test", "normal", str(path), ""])
        for place, (picture, hole) in enumerate(broken):
            path, of_mask = (Path(name, "Data", kind, "Anomaly", f"{place:03}") for kind in ("Images", "Masks"))
            for own in (path, of_mask):
                (tmp_path / "visa" / own).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "visa" / f"{path}.JPG", "PNG")
            kinds = hole.astype(np.uint8)
            kinds[:, SIDE // 2 :] *= 3
            Image.fromarray(kinds).save(tmp_path / "visa" / f"{of_mask}.png")
            rows.append([name, "test", "anomaly", f"{path}.JPG", f"{of_mask}.png"])
    (tmp_path / "visa" / "split_csv").mkdir()
    with open(tmp_path / "visa" / "split_csv" / "1cls.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "visa"


def test_one_table_over_all_objects(
    run, mvtec: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    options = ("--backbone", model_folder, "--shots", "1,2", "--seeds", "1", "--set", "cache=false")
    result = run("few-normal", "patch_memory", "--data", f"defects:{mvtec}", *options, "--out", out)
    assert result.exit_code == 0, result.output
    results = read_results(out)
    assert [Path(each["recipe"]["data"]["source"]).name for each in results] == ["grid", "tile"]
    header, *rows = table_of_sets(results)
    assert list(header) == ["", "", "grid", "tile", "average"]
    assert [row[1] for row in rows if row] == [
        f"{title}, {shots}"
        for title in ("AUROC of images", "F1-max of images", "AUROC of pixels", "PRO")
        for shots in ("1 shot", "2 shots")
    ]
    of_grid = results[0]["runs"][0]
    split, folder = load(f"defects:{mvtec / 'grid'}"), next(out.glob("*grid"))
    model = load_adapter(folder / of_grid["run"] / "adapter.safetensors")
    figures = evaluate(model, split.test).figures()
    for name in ("image_auroc", "image_f1_max", "pixel_auroc", "pro"):
        assert of_grid[name] == pytest.approx(figures[name], abs=1e-6)
    assert rows[0][2].mean == of_grid["image_auroc"]
    average = sum(each["runs"][0]["image_auroc"] for each in results) / 2
    assert rows[0][4].mean == pytest.approx(average)
    assert "published" not in result.stdout  # of fifteen objects, not of two
    again = run("few-normal", "patch_memory", "--data", f"defects:{mvtec}", *options, "--out", out)
    assert again.stdout == result.stdout
    monkeypatch.setitem(papers._table()["objects"], "mvtec", ["tile", "grid"])
    *_, average = next(row for row in table_of_sets(results) if "published" in row[0])
    assert average == "96.6"


def test_visa_is_read_from_its_list(visa: Path) -> None:
    split = load(f"defects:{visa / 'pcb1'}")
    assert (split.name, len(split.train), len(split.test)) == ("pcb1", 3, 7)
    assert {item.answer for item in split.train} == {"normal"}
    assert [item.answer for item in split.test].count("abnormal") == 4
    holes = [hole for _, hole in pictures(1)[1]]
    masks = [mask_of(item, lambda mask: mask, (SIDE, SIDE)) for item in split.test if item.answer == "abnormal"]
    assert all(np.array_equal(mask.numpy(), hole) for mask, hole in zip(masks, holes, strict=True))
    with pytest.raises(AdaptError, match="lists no object 'pcb9'"):
        load(f"defects:{visa / 'pcb9'}")
    with open(visa / "split_csv" / "1cls.csv", "a") as file:
        file.write("pcb1,test,normal\n")
    with pytest.raises(AdaptError, match=r"1cls\.csv line 22 does not have the five columns"):
        load(f"defects:{visa / 'pcb1'}")


def test_visas_labels_are_read_in_any_case_and_its_defects_need_their_masks(visa: Path) -> None:
    path = visa / "split_csv" / "1cls.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], *(row.replace(",normal,", ",Normal ,") for row in rows[1:])]))
    assert [item.answer for item in load(f"defects:{visa / 'pcb1'}").test].count("abnormal") == 4
    path.write_text("\n".join([*rows[:-1], rows[-1].rpartition(",")[0] + ","]))
    with pytest.raises(AdaptError, match=r"Anomaly/003\.JPG' is an image of a defect without a mask: add it"):
        load(f"defects:{visa / 'pcb1'}")
    assert len(load(f"defects:{visa / 'candle'}").test) == 7


def test_published_averages_are_of_all_objects_alone() -> None:
    names = papers._table()["objects"]
    assert (len(names["mvtec"]), len(names["visa"])) == (15, 12)
    assert [row["values"]["1"] for row in papers.averages_for(names["mvtec"])] == ["96.6"]
    assert papers.averages_for(names["visa"])[0]["values"]["16"] == "94.8"
    assert papers.averages_for(names["visa"][1:]) == []


def test_figures_of_maps_are_refused_where_there_are_none(run, mvtec: Path, model_folder: Path, tmp_path: Path) -> None:
    options = ("--backbone", model_folder, "--shots", "1", "--seeds", "1", "--out", tmp_path / "runs")
    result = run("few-normal", "linear_probe", "--data", f"defects:{mvtec / 'grid'}", *options)
    assert result.exit_code == 2
    assert "linear_probe draws no maps, which this protocol measures" in result.stderr
    shutil.rmtree(mvtec / "grid" / "ground_truth")
    result = run("few-normal", "patch_memory", "--data", f"defects:{mvtec / 'grid'}", *options)
    assert (result.exit_code, "has a mask: add masks of its defects" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"candle,valid,normal,candle/a.png,", "line 2 has the split 'valid'; expected train, val, test"),
        (b"caf\xe9,train,normal,a.png,", "it is not UTF-8"),
        (b"candle,train,normal,../../a.png,", "is not under the root"),
    ],
)
def test_lists_of_visa_that_cannot_be_read_are_refused(tmp_path: Path, row: bytes, message: str) -> None:
    (tmp_path / "candle").mkdir()
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_bytes(b"object,split,label,image,mask\n" + row + b"\n")
    with pytest.raises(AdaptError, match=message):
        load(f"defects:{tmp_path / 'candle'}")
