"""`adapt maps`"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

import adapt
from adapt.data import load
from adapt.data.decoding.images import open_image


@pytest.fixture
def adapter(model_folder: Path, tmp_path: Path) -> Path:
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.AnoVL(), ("normal", "abnormal"))
    return model.save(tmp_path / "anovl.safetensors")


def test_a_picture_of_each_image(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "heat"
    result = run("maps", adapter, photos / "test", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 6
    assert {Path(row["map"]) for row in rows} == set(out.iterdir())
    model = adapt.load(adapter)
    expected = model.anomaly_maps([row["image"] for row in rows])
    assert [row["abnormal"] for row in rows] == pytest.approx(expected.amax((1, 2)).tolist(), abs=1e-6)
    assert [row["class"] for row in rows] == [each.class_name for each in model.predict([row["image"] for row in rows])]
    darkest = max(rows, key=lambda row: row["abnormal"])
    with Image.open(darkest["map"]) as picture:
        assert picture.size == (expected.shape[2], expected.shape[1])
        red, _, blue = picture.convert("RGB").getpixel((0, 0))
        assert red > blue or expected[rows.index(darkest), 0, 0] <= expected.median()


def test_nothing_is_written_over_and_only_maps_are_drawn(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    result = run("maps", adapter, photos, "--out", tmp_path)
    assert result.exit_code == 2
    assert "exists already; name a new folder" in result.stderr
    plain = adapt.wrap(adapt.load(adapter).backbone, adapt.methods.ZeroShot(), ("cat", "dog"))
    result = run("maps", plain.save(tmp_path / "plain.safetensors"), photos, "--out", tmp_path / "heat")
    assert result.exit_code == 2
    assert "zero_shot classifies images and draws no anomaly maps" in result.stderr
    assert not (tmp_path / "heat").exists()


def test_good_images_give_a_threshold_to_maps_and_predictions(run, model_folder: Path, tmp_path: Path) -> None:
    split = load("emoji-product")
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.PatchMemory(), split.class_names)
    adapt.fit(model, split.train[:4], progress=False)
    adapter, pictures = model.save(tmp_path / "memory.safetensors"), tmp_path / "pictures"
    pictures.mkdir()
    open_image(split.train[0]).save(pictures / "known.png")
    Image.effect_noise((64, 64), 90).convert("RGB").save(pictures / "strange.png")
    told = run("predict", adapter, pictures)
    assert told.exit_code == 0, told.output
    assert "p = 1" in told.stdout
    assert "p = 0.2" in told.stdout
    rows = [*csv.DictReader(run("predict", adapter, pictures, "--csv").stdout.splitlines())]
    assert [(row["class"], float(row["p_value"])) for row in rows] == [("normal", 1), ("abnormal", 0.2)]
    drawn = run("maps", adapter, pictures, "--out", tmp_path / "heat")
    assert "colours begin where few good images have a pixel" in drawn.stderr
    known, strange = (Image.open(path).convert("RGB") for path in sorted((tmp_path / "heat").iterdir()))
    plain = model.backbone.preprocess.placing()(open_image(pictures / "known.png"))
    assert ImageChops.difference(known, plain.resize(known.size)).getbbox() is None  # no colour at all
    assert ImageChops.difference(strange, strange.convert("L").convert("RGB")).getbbox() is not None
