"""`adapt maps`"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import adapt


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
