"""Certificates: what answering costs, measured and bound to the adapter file. No duration is asserted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_backbones
import tiny_fusion
import tiny_llms
import tiny_natives
import tiny_vision
import torch

import adapt
from adapt import AdaptError, methods
from adapt.evaluation.flops import answer_flops
from adapt.formats import certificate
from adapt.formats.adapter import versions
from adapt.formats.certificate import Certificate
from adapt.formats.tensor_file import describe
from adapt.models.base import Adapted

NAMES = ("goldfish", "red_panda", "sea cucumber")


def certified(model: Adapted, folder: Path) -> tuple[Path, Certificate]:
    file = model.save(folder / "first.safetensors")
    found = certificate.measured(model.eval(), file, 0.01)
    certificate.place_of(file).write_text(found.model_dump_json())
    return file, found


@pytest.fixture
def model() -> adapt.AdaptedModel:
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.CoOp(n_ctx=2), NAMES).eval()


def test_every_figure_is_what_it_says(model: adapt.AdaptedModel, tmp_path: Path) -> None:
    file, found = certified(model, tmp_path)
    assert certificate.place_of(file) == tmp_path / "first.certificate.json"
    assert found.adapter == describe(file).checksum
    assert [each.images for each in found.latency] == [1, 32]
    for each in found.latency:
        assert each.runs >= 5
        assert 0 < each.p50_ms <= each.p99_ms
    assert found.images_per_second > 0
    assert found.operations == answer_flops(model)
    assert found.file_bytes == os.path.getsize(file)
    assert found.peak_memory_bytes > 50 * 2**20  # Python and torch
    assert found.peak_device_bytes is None
    assert found.machine["threads"] == torch.get_num_threads()
    assert found.machine["cores"] == os.cpu_count()
    assert found.machine["processor"]
    assert (found.machine["device"], found.machine["precision"]) == ("cpu", "float32")
    assert found.machine["versions"] == versions()
    assert "a picture of noise, 448 x 448 pixels" in found.measured
    assert certificate.read(file) == found
    rows = found.rows()
    assert [*rows] == [
        "machine", "measured", "latency of 1 image", "latency of 32 images", "images a second", "peak memory",
        "operations", "adapter file",
    ]  # fmt: skip
    assert f"torch {versions()['torch']}" in rows["machine"]
    assert (
        f"p99 {found.latency[0].p99_ms:,.1f} ms (the slowest), of {found.latency[0].runs} runs"
        in rows["latency of 1 image"]
    )


def test_a_percentile_is_the_duration_of_a_call(model: adapt.AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that tells 1, 2, 3, ... ms for each call in turn: 200 of them, whose 99th percentile is the 198th."""
    file, ticks, calls = Path(os.devnull), [0.0], [0]

    def predict(images: object, **asked: object) -> list[object]:
        calls[0] += 1
        ticks[0] += max(0, calls[0] - certificate.UNTIMED) / 1000
        return []

    monkeypatch.setattr(certificate, "BATCHES", (1,))
    monkeypatch.setattr(certificate, "MOST", 200)
    monkeypatch.setattr(certificate.time, "perf_counter", lambda: ticks[0])
    monkeypatch.setattr(certificate.tensor_file, "describe", lambda path: type("Header", (), {"checksum": "sha256:"}))
    monkeypatch.setattr(model, "predict", predict)
    found = certificate.measured(model, file, 1e9)
    [latency] = found.latency
    assert (latency.runs, latency.p50_ms, latency.p99_ms) == (200, pytest.approx(100), pytest.approx(198))
    assert found.images_per_second == pytest.approx(1000 / 100.5)
    assert "(the slowest)" not in found.rows()["latency of 1 image"]


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        (lambda: adapt.wrap(tiny_vision.backbone("vit"), methods.NearestMean(), NAMES), False),
        (lambda: adapt.wrap(tiny_fusion.vilt(), methods.LoRA(towers=("fusion",)), tiny_fusion.ANSWERS), True),
        (lambda: adapt.wrap(tiny_llms.vision_llm("llama"), methods.Projector()), True),
        (lambda: adapt.wrap(tiny_natives.backbone("llava"), methods.LoRA(towers=("decoder",))), True),
        (lambda: adapt.wrap(tiny_natives.backbone("llava"), methods.LoRA(towers=("decoder",)), NAMES), False),
    ],
    ids=["vision encoder", "fusion encoder", "vision LLM", "native", "native with classes"],
)
def test_other_kinds(made: Callable[[], Adapted], asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "BATCHES", (1, 2))
    model = made()
    _, found = certified(model, tmp_path)
    assert found.operations > 1000
    assert ("with the question" in found.measured) == asked


def test_methods_that_read_views_count_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "BATCHES", (1,))
    backbone = tiny_backbones.backbone("open_clip")
    one, many = (
        certified(adapt.wrap(backbone, method, NAMES), tmp_path)[1].operations
        for method in (methods.ZeroShot(), methods.TPT(views=7))
    )
    assert many > 7 * one


def test_a_model_of_any_classes_is_refused(tmp_path: Path) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.LoRA(), [])
    with pytest.raises(AdaptError, match="this lora has no classes of its own, on whose number the cost"):
        certified(model, tmp_path)


def test_that_of_another_file_is_none(
    model: adapt.AdaptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, found = certified(model, tmp_path)
    model.metadata = {"seed": 7}
    model.save(file)
    assert certificate.read(file) is None
    assert "first.certificate.json is of another adapter than" in caplog.text
    assert certificate.read(tmp_path / "second.safetensors") is None
    place = certificate.place_of(file)
    for damaged in ("{", '{"adapter": 1}', json.dumps(found.model_dump() | {"operations": -1}), "[]"):
        place.write_text(damaged)
        with pytest.raises(AdaptError, match=r"first\.certificate\.json is damaged \(delete it, and measure again\): "):
            certificate.read(file)
