"""Images are encoded once over several commands, which say so."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapt.data.decoding import cache


def test_recommend_predict_sets_and_eval_encode_each_image_once(
    run: Any, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoded, usual = list[int](), cache._encode
    monkeypatch.setattr(cache, "_encode", lambda encode, images: encoded.append(len(images)) or usual(encode, images))
    for number in range(120):
        path = tmp_path / "photos" / ("red", "blue")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (2 * number, 40, 240 - 2 * number)).save(path)
    photos, out = tmp_path / "photos", tmp_path / "out"
    result = run("recommend", photos, "--backbone", model_folder, "--out", out)
    assert result.exit_code == 0, result.output
    adapter = out / "adapter.safetensors"
    assert sum(encoded) >= 120  # and some before the last projection, by a method that learns it
    encoded.clear()
    caplog.set_level("INFO", "adapt")
    for command in (
        ("predict", adapter, photos),
        ("sets", adapter, "--data", photos, "--part", "test", "--out", tmp_path / "sets.safetensors"),
        ("eval", adapter, "--data", photos),
        ("predict", tmp_path / "sets.safetensors", photos, "--sets", 0.9),
    ):  # fmt: skip
        again = run(*command)
        assert again.exit_code == 0, again.output
    assert encoded == []
    assert caplog.messages.count("the features of 120 of 120 images are reused") == 2


def rows(result: Any) -> list[list[str]]:
    return [*csv.reader(result.stdout.splitlines())][1:]


def test_answers_from_kept_features_are_those_of_the_images(
    run: Any, recipe: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("train", recipe, "--out", tmp_path / "run").exit_code == 0
    (photos_and_one := tmp_path / "some").mkdir()
    (photos_and_one / "broken.png").write_bytes(b"no image")
    asked = ("predict", tmp_path / "run/adapter.safetensors", photos_and_one, photos, "--csv")
    direct = run(*asked)
    monkeypatch.setattr("adapt.cli.predict._MANY", 1)
    for _ in range(2):
        kept = run(*asked)
        for ours, theirs in zip(rows(kept), rows(direct), strict=True):
            assert ours[:2] == theirs[:2]
            assert float(ours[2]) == pytest.approx(float(theirs[2]), abs=2e-6)
        assert (kept.exit_code, kept.stderr) == (direct.exit_code, direct.stderr)
