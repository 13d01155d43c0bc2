"""The number of labels that a learning curve says, where it follows a power law, and where it cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.evaluation.learning_curve import LearningCurve

SIZES = (2.0, 4.0, 8.0, 16.0)


def accuracies(power: float, noise: float) -> np.ndarray:
    """Accuracies whose error is 0.8 times the images to minus `power`, times a normal factor but for the last."""
    draw = np.random.default_rng(0).normal(size=(10, len(SIZES))) * noise
    draw -= draw.mean(0)
    draw[:, -1] = 0
    return 1 - 0.8 * np.array(SIZES) ** -power * np.exp(draw)


def test_a_planted_power_law_is_recovered() -> None:
    curve = LearningCurve.of(SIZES, accuracies(0.5, 0.01), target=0.85)
    assert curve.labels == round((0.8 / 0.15) ** 2 - 16) == 12
    assert str(curve) == "About 12 more labels a class for 85 % on the test images"
    usual = LearningCurve.of(SIZES, accuracies(0.5, 0.01))  # of twice the images, 85.9 %
    assert (usual.target, usual.labels) == (0.86, round((0.8 / 0.14) ** 2 - 16))
    assert [point.images for point in curve.points] == list(SIZES)
    assert curve.points[-1].accuracy == pytest.approx(0.8)


def test_the_band_is_of_trainings_and_the_last_one_that_of_halves() -> None:
    rows = accuracies(0.5, 0.05)
    *_, half, whole = LearningCurve.of(SIZES, rows).points
    assert half.high - half.low == pytest.approx(2 * 1.96 * rows[:, -2].std(ddof=1), rel=1e-3)
    assert (whole.images, whole.accuracy) == (16, pytest.approx(0.8))
    assert (whole.low + whole.high) / 2 == pytest.approx(0.8)
    assert whole.high - whole.low == pytest.approx(half.high - half.low)


@pytest.mark.parametrize(
    ("rows", "target", "reason"),
    [
        (accuracies(0.5, 0.2), 0.85, "other images of the same number would change the curve too much"),
        (np.full((10, 4), 0.5), 0.85, "the accuracy does not grow with the images"),
        (accuracies(0.5, 0.01), 0.95, "it would take more than 4 times the images at hand"),
        (np.ones((10, 4)), None, "hardly any error is left to measure by"),
    ],
)
def test_it_cannot_be_told(rows: np.ndarray, target: float | None, reason: str) -> None:
    curve = LearningCurve.of(SIZES, rows, target)
    assert curve.labels is None
    assert curve.reason == reason
    percent = 100 if target is None else 100 * target  # and not 101
    assert str(curve).endswith(f"a class {percent:g} % on the test images would take cannot be told: {reason}")


def test_a_target_that_is_reached_needs_no_labels() -> None:
    curve = LearningCurve.of(SIZES, accuracies(0.5, 0.01), target=0.8 - 1e-9)
    assert curve.labels == 0
    assert str(curve) == "No more labels are needed for 80 % on the test images"


def test_more_images_of_the_same_groups_are_not_extrapolated() -> None:
    rows = accuracies(0.5, 0.01)
    assert LearningCurve.of(SIZES, rows, 0.85, per_group=1.1).labels == 12
    grouped = LearningCurve.of(SIZES, rows, 0.85, per_group=1.5)
    assert grouped.labels is None
    assert grouped.reason == "images come in groups, and more of the same groups would help less"


def test_a_single_number_of_images_is_no_curve() -> None:
    curve = LearningCurve.of(SIZES[-1:], accuracies(0.5, 0.01)[:, -1:], 0.85)
    assert (curve.labels, curve.reason) == (None, "there are too few images for a curve")
