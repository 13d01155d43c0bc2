"""Figures that follow from predictions: accuracy, by class, and calibration."""

from __future__ import annotations

import pytest

from adapt.evaluation.scores import Scores


def scores(actual: str, predicted: str, confidence: tuple[float, ...]) -> Scores:
    """One letter a class, one an image."""
    return Scores(tuple(f"{i}.png" for i in range(len(actual))), tuple(actual), tuple(predicted), confidence)


def test_accuracy_is_over_images_and_the_mean_over_classes_beside_it() -> None:
    each = scores("aaab", "aabb", (0.9, 0.8, 0.7, 0.6))
    assert each.right == (True, True, False, True)
    assert (each.accuracy, each.images) == (0.75, 4)
    assert each.by_class == {"a": pytest.approx(2 / 3), "b": 1.0}
    assert each.figures()["mean_class_accuracy"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("predicted", "confidence", "expected"),
    [
        ("aaaa", (1.0, 1.0, 1.0, 1.0), 0.0),
        ("bbbb", (1.0, 1.0, 1.0, 1.0), 1.0),
        ("aabb", (0.5, 0.5, 0.5, 0.5), 0.0),  # half of one bin is right
        ("aabb", (0.9, 0.9, 0.5, 0.5), (2 * 0.1 + 2 * 0.5) / 4),  # two bins: 0.9 and all right, 0.5 and none
        ("ab", (0.51, 0.52), (abs(0.51 + 0.52 - 1)) / 2),  # errors of one bin cancel out
        ("ab", (0.32, 0.34), (0.68 + 0.34) / 2),  # a third is where two of fifteen bins meet
    ],
)
def test_calibration_error_is_the_gap_between_confidence_and_accuracy(
    predicted: str, confidence: tuple[float, ...], expected: float
) -> None:
    assert scores("a" * len(predicted), predicted, confidence).calibration_error == pytest.approx(expected)


def test_rows_are_what_a_run_keeps() -> None:
    assert scores("a", "b", (0.123456789,)).rows() == [
        {"path": "0.png", "class": "a", "predicted": "b", "confidence": 0.123457}
    ]
