"""`adapt predict --maps`"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import adapt
from adapt.data import load
from adapt.data.decoding.images import open_image
from adapt.models.watch import Watch


@pytest.fixture
def adapter(model_folder: Path, tmp_path: Path) -> Path:
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.AnoVL(), ("normal", "abnormal"))
    return model.save(tmp_path / "anovl.safetensors")


def test_two_pictures_of_each_map(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "heat"
    result = run("predict", adapter, photos / "test", "--maps", out, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    maps = [row["map"] for row in rows]
    assert len(rows) == 6
    assert {Path(own[name]) for own in maps for name in ("scores", "overlay")} == set(out.iterdir())
    model = adapt.load(adapter)
    predicted = model.predict([row["image"] for row in rows], maps=True)
    for own, each in zip(maps, predicted, strict=True):
        assert own["highest"] == pytest.approx(float(each.map.scores.max()), abs=1e-6)
        assert own["threshold"] is None
        with Image.open(own["scores"]) as picture:
            assert (picture.mode, picture.size) == ("I;16", each.map.scores.shape[::-1])
            scores = own["offset"] + own["scale"] * np.asarray(picture)
        assert np.abs(scores - each.map.scores.numpy()).max() <= own["scale"] / 2 + 1e-6
        assert own["scale"] < 1e-5
    assert [row["class"] for row in rows] == [each.class_name for each in predicted]
    darkest = max(range(6), key=lambda number: maps[number]["highest"])
    with Image.open(maps[darkest]["overlay"]) as picture:
        y, x = np.unravel_index(int(predicted[darkest].map.scores.argmax()), predicted[darkest].map.scores.shape)
        red, _, blue = picture.convert("RGB").getpixel((int(x), int(y)))
        assert red > blue


def test_nothing_is_written_over_and_only_maps_are_drawn(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    result = run("predict", adapter, photos, "--maps", tmp_path)
    assert result.exit_code == 2
    assert "exists already; name a new folder" in result.stderr
    plain = adapt.wrap(adapt.load(adapter).backbone, adapt.methods.ZeroShot(), ("cat", "dog"))
    result = run("predict", plain.save(tmp_path / "plain.safetensors"), photos, "--maps", tmp_path / "heat")
    assert result.exit_code == 2
    assert "zero_shot classifies images and draws no anomaly maps" in result.stderr
    result = run("predict", adapter, photos, "--maps", tmp_path / "heat", "--items")
    assert (result.exit_code, "--maps cannot go with items of several images" in result.stderr) == (2, True)
    assert not (tmp_path / "heat").exists()


def test_what_the_answers_of_any_adapter_rest_on(run, model_folder: Path, photos: Path, tmp_path: Path) -> None:
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.ZeroShot(), ("cat", "dog"))
    model.watch = Watch.of(torch.randn(16, 14), None, torch.arange(16) % 2, 2)
    adapter, out = model.save(tmp_path / "plain.safetensors"), tmp_path / "why"
    result = run("predict", adapter, photos / "test", "--explain", "--maps", out, "--json")
    assert result.exit_code == 0, result.output
    assert "the watch sees" not in result.stderr
    assert "colours show where the answer becomes less sure if that part is covered" in result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    expected = adapt.load(adapter).decisive_maps([row["image"] for row in rows])
    assert all(row["strangeness"] > 0 for row in rows)
    for row, scores in zip(rows, expected, strict=True):
        own = row["map"]
        with Image.open(own["scores"]) as picture:
            written = own["offset"] + own["scale"] * np.asarray(picture)
        assert np.abs(written - scores.numpy()).max() <= own["scale"] / 2 + 1e-5
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        with Image.open(own["overlay"]) as picture:
            red, _, blue = picture.convert("RGB").getpixel((int(x), int(y)))
        assert red > blue or scores.max() <= 0  # then the answer rests on no part, and none is coloured


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
    drawn = run("predict", adapter, pictures, "--csv", "--maps", tmp_path / "heat")
    rows = [*csv.DictReader(drawn.stdout.splitlines())]
    assert [(row["class"], float(row["p_value"])) for row in rows] == [("normal", 1), ("abnormal", 0.2)]
    threshold = float(model.method.threshold(pixels=True))
    assert [float(row["map_threshold"]) for row in rows] == [pytest.approx(threshold)] * 2
    assert [float(row["map_highest"]) > threshold for row in rows] == [False, True]
    assert "colours begin at the adapter's threshold of pixels" in drawn.stderr
    known, strange = (Image.open(row["map_overlay"]).convert("RGB") for row in rows)
    plain = model.backbone.preprocess.placing()(open_image(pictures / "known.png"))
    assert ImageChops.difference(known, plain.resize(known.size)).getbbox() is None  # no colour at all
    assert ImageChops.difference(strange, strange.convert("L").convert("RGB")).getbbox() is not None


def test_a_map_of_an_image_with_a_long_name_has_a_shorter_one(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    image = tmp_path / f"{'é' * 125}.png"  # 254 bytes, to which a number and a suffix are too many
    image.write_bytes(next(photos.rglob("*.png")).read_bytes())
    result = run("predict", adapter, image, "--maps", tmp_path / "heat")
    assert result.exit_code == 0, result.output
    names = {f"00000_{'é' * 100}{end}" for end in (".png", ".scores.png")}
    assert {each.name for each in (tmp_path / "heat").iterdir()} == names
