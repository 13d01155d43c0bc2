"""The temperature under which labels are likeliest, and what a training says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F

import adapt
from adapt import AdaptError, fit, methods
from adapt.data import Split
from adapt.evaluation.scores import calibration_error, reliability
from adapt.training.measures import FLAT, likeliest, spread, temperature
from benchmarks import calibration, drawings

NAMES = ("goldfish", "red_panda", "sea cucumber")
SEED = 1  # of the sample and of the folds


def test_it_is_found_to_the_third_digit() -> None:
    """Labels drawn by logits over 3 have their likeliest temperature near 3; a grid agrees."""
    torch.manual_seed(3)
    logits = 4 * torch.randn(4000, 5, dtype=torch.double)
    labels = torch.distributions.Categorical(logits=logits / 3).sample()
    found = likeliest(logits, labels)
    assert found == pytest.approx(3, rel=0.1)
    grid = torch.linspace(2.5, 3.5, 2001, dtype=torch.double)
    added = 2 * F.one_hot(logits.argmax(-1), 5) + 2 / 5  # two right answers, and two of random classes
    targets = (4000 * F.one_hot(labels, 5) + added) / 4004
    best = grid[torch.stack([F.cross_entropy(logits / each, targets) for each in grid]).argmin()]
    assert found == pytest.approx(float(best), abs=1e-3)


def test_answers_that_are_all_right_do_not_become_certain() -> None:
    """Three of three count as five and two thirds of seven; nothing right is no better than chance."""
    right, wrong = torch.eye(3, dtype=torch.double), torch.eye(2, dtype=torch.double)
    confidence = (right / likeliest(right, torch.arange(3))).softmax(-1).diagonal()
    assert confidence.tolist() == pytest.approx([(3 + 2 + 2 / 3) / 7] * 3, abs=1e-4)
    assert likeliest(wrong, torch.tensor([1, 0])) == pytest.approx(FLAT * spread(wrong))
    assert likeliest(torch.zeros(3, 2), torch.tensor([0, 1, 0])) == 1


def test_of_several_labels_each_class_is_a_decision() -> None:
    """Labels drawn by sigmoids of logits over 3; the highest temperature where they are no better than chance."""
    torch.manual_seed(3)
    logits = 4 * torch.randn(1000, 5, dtype=torch.double) - 3
    labels = torch.rand(1000, 5, dtype=torch.double) < (logits / 3).sigmoid()
    found = likeliest(logits, labels)
    assert found == pytest.approx(3, rel=0.1)
    assert likeliest(1000 * logits, labels) == pytest.approx(1000 * found, rel=1e-6)
    chance = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.double)
    assert likeliest(chance, chance < 0) == pytest.approx(FLAT)  # of logits one from the threshold
    assert likeliest(torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)) == 1
    right = likeliest(chance, chance > 0)  # two of two, and the class's own share added: (2 + 2 + 2) / 6, nearly
    assert 0 < right < 0.2


def test_the_size_of_the_logits_does_not_matter() -> None:
    """Those of wide features may be in the thousands."""
    logits = torch.randn(100, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    labels = (logits + torch.randn(100, 5, generator=torch.Generator().manual_seed(2))).argmax(-1)
    found = likeliest(logits, labels)
    assert likeliest(1000 * logits, labels) == pytest.approx(1000 * found, rel=1e-6)


def test_bins_by_hand() -> None:
    bins = reliability([0.05, 0.06, 0.95, 1.0], [True, False, True, True])
    assert [each["images"] for each in bins] == [2, 2]
    assert bins[0] == pytest.approx({"images": 2, "confidence": 0.055, "accuracy": 0.5})
    assert calibration_error(bins) == pytest.approx((2 * 0.445 + 2 * 0.025) / 4)


@pytest.mark.parametrize(
    ("method", "encoder"),
    [(methods.GDA(views=0), drawings.backbone), (methods.NearestMean(), calibration.wide)],
    ids=["mini-clip", "wide"],
)
def test_a_method_without_steps_is_calibrated_by_folds_unless_told_otherwise(
    method: methods.Method, encoder: Callable[[], Any]
) -> None:
    """No image is given away, and hardly more error is left than few test images show of calibrated answers."""
    before, after, simulated = calibration.errors(method, encoder(), drawings.drawings(drawings.SEEN), 16, SEED)
    assert before > simulated + 0.15
    assert after < simulated + 0.03


def test_a_training_calibrates_and_its_adapter_keeps_it(
    tiny_split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def made() -> adapt.AdaptedModel:
        return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.ZeroShot(), NAMES)

    options = {"val_set": tiny_split.val, "progress": False}
    plain = fit(made(), tiny_split.train, tiny_split.test, calibrate=False, **options)
    assert "\nnot calibrated: calibration error" in str(plain)
    result = fit(made(), tiny_split.train, tiny_split.test, out=tmp_path / "run", **options)
    found = result.metrics["calibration"]
    assert found["error_before"] == pytest.approx(plain.metrics["adapted"]["calibration_error"])
    assert result.accuracy == plain.accuracy  # the order of the logits stays
    assert "calibrated by a temperature of" in str(result)
    assert f"chosen on {len(tiny_split.val)} images, is uncertain" in caplog.text
    loaded = adapt.load(tmp_path / "run", tiny_backbones.backbone("open_clip"))
    assert loaded.answers.temperature == found["temperature"] != 1
    assert temperature(loaded, tiny_split.val, workers=0) == pytest.approx(found["temperature"], rel=1e-3)  # not twice
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert sum(each["images"] for each in kept["calibration"]["before"]) == len(tiny_split.test)
    assert kept["val"]["images"] == len(tiny_split.val)


def test_it_needs_validation_images(tiny_split: Split, tmp_path: Path) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.CoOp(n_ctx=2), NAMES)
    with pytest.raises(AdaptError, match="calibrate needs validation images to choose a temperature"):
        fit(model, tiny_split.train, calibrate=True, out=tmp_path / "run", progress=False, epochs=1)
    assert not (tmp_path / "run").exists()
