"""The standard error of a mean over images, some of which belong together."""

from __future__ import annotations

import pytest
import torch

from adapt.evaluation.intervals import standard_error


def test_images_that_stand_alone_have_the_usual_error() -> None:
    values = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.double)
    assert standard_error(values, list("abcde")) == pytest.approx(float(values.std()) / 5**0.5)
    assert standard_error(values[:2], ["a", "b"]) == pytest.approx(0.5)


def test_images_of_a_group_count_together() -> None:
    values = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.double)
    sums = torch.tensor([2 * 0.6, -0.4, -2 * 0.4])  # deviations from the mean, by group
    assert standard_error(values, ["a", "a", "b", "c", "c"]) == pytest.approx(float(sums.norm()) / 5 * (3 / 2) ** 0.5)


def test_of_one_group_nothing_is_known() -> None:
    assert standard_error(torch.tensor([1.0, 0.0], dtype=torch.double), ["a", "a"]) == 0.0
