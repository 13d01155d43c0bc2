"""Scores of answers in words, by hand."""

from __future__ import annotations

import pytest

from adapt.evaluation.free_text import WordScores, normalised, relaxed, similarity, token_f1


@pytest.mark.parametrize(
    ("predicted", "actual", "f1", "alike", "within"),
    [
        ("A dog.", "the dog", 1.0, 0.0, True),  # three of seven characters differ, and an ANLS below a half counts 0
        ("a big dog", "the big red dog", 0.8, 8 / 15, False),
        ("dogs", "dog", 0.0, 0.75, False),
        ("", "dog", 0.0, 0.0, False),
        ("", "", 1.0, 1.0, True),
        ("1,040", "1000", 0.0, 0.6, True),
        ("1051", "1000", 0.0, 0.5, False),
        ("12%", "12", 1.0, 2 / 3, True),
        ("minus 3", "-3", 0.0, 0.0, False),
    ],
)
def test_one_answer(predicted: str, actual: str, f1: float, alike: float, within: bool) -> None:
    assert token_f1(predicted, actual) == pytest.approx(f1)
    assert similarity(predicted, actual) == pytest.approx(alike)
    assert relaxed(predicted, actual) is within


def test_normalisation() -> None:
    assert normalised("  The  Dog's,  an APPLE; a  cat? ") == "dogs apple cat"
    numbers = ["1.5", "15", "-5", "5", "3/4", "34", "10:30", "1030", ".5", "-.5", "3-5", "35", "1,5", "1e-5", "1e5"]
    assert [normalised(f"The {number}.") for number in numbers] == numbers  # all of them different answers
    assert normalised("1,000 km") == normalised("1000 km.")
    assert normalised("\N{MINUS SIGN}5") == "-5"
    assert [normalised(answer) for answer in ("A", "(a)", "the", "")] == ["a", "a", "the", ""]


def test_figures() -> None:
    scores = WordScores(
        paths=("a", "b", "c", "d"),
        actual=("two", "a dog", "red", "two"),
        predicted=("two", "Dog.", "dark red", "three"),
        confidence=(0.9, 0.6, 0.8, 0.5),
        questions=("how many?", "what?", "colour?", "how many?"),
    )
    figures = scores.figures()
    assert (figures["accuracy"], figures["exact_match"], figures["relaxed_accuracy"]) == (0.5, 0.25, 0.5)
    assert figures["token_f1"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert figures["anls"] == pytest.approx((1 + 0 + 0 + 0) / 4)
    assert scores.details()["by_question"] == {"how many?": 0.5}
    assert next(scores.lines("4 questions")) == (
        "50.0 % (15.0 to 85.0) of 4 questions answered right, token F1 66.7 % (0.0 to 100.0), "
        "ANLS 25.0 % (0.0 to 100.0)"
    )
    assert scores.rows()[2]["question"] == "colour?"
