"""How many images a threshold leaves answered, and how many of these rightly."""

from __future__ import annotations

import pytest

from adapt.evaluation.scores import Scores, by_threshold, coverage_and_accuracy
from adapt.models.prediction import Prediction, judged

CONFIDENCE = (0.9, 0.6, 0.6, 0.4, 0.8)
RIGHT = (True, False, True, False, True)


def test_shares_and_accuracies_by_threshold() -> None:
    rows = {row["threshold"]: row for row in by_threshold(CONFIDENCE, RIGHT, "abcde")}
    ends = [pytest.approx(end, abs=1e-4) for end in (0.3006, 0.9544)]  # Wilson's, of three of four
    assert rows[0.6] == {"threshold": 0.6, "answered": 4, "share": 0.8, "accuracy": 0.75, "interval": ends}
    assert [(row["answered"], row["accuracy"]) for row in rows.values()] == [
        (5, 0.6), (5, 0.6), (5, 0.6), (4, 0.75), (4, 0.75), (2, 1.0), (2, 1.0), (1, 1.0), (0, None), (0, None)
    ]  # fmt: skip
    assert rows[0.99]["interval"] is None


def test_a_threshold_answers_what_predict_answers() -> None:
    said = [judged(Prediction("a", sure, ()), 0.6).class_name for sure in CONFIDENCE]
    [row] = [row for row in by_threshold(CONFIDENCE, RIGHT, "abcde") if row["threshold"] == 0.6]
    assert row["answered"] == said.count("a") == 4


def test_the_curve_takes_equal_confidences_together() -> None:
    points = [(0.2, 1.0), (0.4, 1.0), (0.8, 0.75), (1.0, 0.6)]
    assert coverage_and_accuracy(CONFIDENCE, RIGHT) == [pytest.approx(point) for point in points]
    assert coverage_and_accuracy((0.5,) * 4, (True, False, False, False)) == [(1.0, 0.25)]


def test_a_run_keeps_the_thresholds_that_people_ask_about() -> None:
    """Half of the images are answered surely and rightly, and half by chance and wrongly."""
    scores = Scores(tuple("abcd"), tuple("xxxx"), tuple("xxyy"), (0.97, 0.92, 0.55, 0.35))
    kept = scores.details()["by_threshold"]
    thresholds = [0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
    answered = [4, 4, 3, 3, 2, 2, 2, 2, 1, 0]
    assert [(row["threshold"], row["answered"]) for row in kept] == list(zip(thresholds, answered, strict=True))
