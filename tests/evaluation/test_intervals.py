"""Intervals of figures: their values beside known ones, and how often they hold the truth of simulated draws."""

from __future__ import annotations

import pytest
import torch
from selection import by_turns

from adapt.data import Item
from adapt.evaluation import intervals
from adapt.evaluation.numbers import GradedScores
from adapt.evaluation.scores import Scores, difference
from benchmarks.intervals import NAIVE, coverage


def scores(right: str, groups: tuple[str, ...] = (), confidence: float = 0.5) -> Scores:
    """One letter an image, y for a right answer."""
    names = tuple(f"{place}.png" for place in range(len(right)))
    return Scores(names, ("y",) * len(right), tuple(right), (confidence,) * len(right), groups)


def test_wilson_of_independent_images() -> None:
    """Values of statsmodels.stats.proportion.proportion_confint(method="wilson")."""
    assert [*scores("y" * 8 + "n" * 2).intervals["accuracy"]] == pytest.approx([0.490162, 0.943318], abs=1e-6)
    assert [*scores("y" * 5).intervals["accuracy"]] == pytest.approx([0.565518, 1.0], abs=1e-6)


def test_images_of_a_group_count_as_fewer() -> None:
    right = "y" * 80 + "n" * 20
    alone, grouped = (
        scores(right, groups).intervals["accuracy"] for groups in ((), tuple(str(n // 5) for n in range(100)))
    )
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    assert scores(right, tuple(map(str, range(100)))).intervals["accuracy"] == alone


def test_what_is_reported_says_how_many_groups_there_are() -> None:
    told = scores("yyyn", ("a", "a", "b", "c")).reported()
    assert (told["accuracy"], told["images"], told["groups"]) == (0.75, 4, 3)
    assert told["intervals"].keys() == {"accuracy", "mean_class_accuracy"}
    assert intervals.legend(4, 3) == "95 % confidence interval, by 3 groups; only rough with fewer than 30 groups"
    assert intervals.legend(4, 1).startswith("95 % confidence interval, by 1 group; only rough")
    assert intervals.legend(99, 99) == "95 % confidence interval; only rough with fewer than 100 images"
    assert intervals.legend(100, 100) == "95 % confidence interval"
    assert scores("yn", ("a", "a")).rows()[0]["group"] == "a"
    assert "group" not in scores("yn").rows()[0]


def test_a_figure_that_does_not_vary_has_no_interval() -> None:
    items = [Item.of(path=f"{number}.png", label="a") for number in range(4)]
    answers = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]])
    exact = GradedScores.of(items, answers, answers[:, 0], ["a"])
    assert exact.intervals.keys() == {"accuracy"}
    assert exact.reported()["text"] == "MAE 0, Spearman 1.000, Pearson 1.000, R² 1.000"


def test_figures_of_numbers_do_not_depend_on_their_unit_and_have_intervals() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.rand(40, generator=draw)  # a range below 1
    answers = torch.stack([targets + 0.2 * torch.randn(40, generator=draw), torch.ones(40)], 1)
    items = [Item.of(path=f"{number}.png", label="a") for number in range(40)]
    small = GradedScores.of(items, answers, targets, ["a"])
    large = GradedScores.of(items, 100 * answers, 100 * targets, ["a"])
    assert small.intervals.keys() == {"accuracy", "mean_absolute_error", "spearman", "pearson", "r2"}
    for name in ("spearman", "pearson", "r2"):
        assert small.figures()[name] == pytest.approx(large.figures()[name], abs=1e-5)
        assert 0.3 < small.figures()[name] < 0.95
        low, high = small.intervals[name]
        assert low < small.figures()[name] < high
    assert 100 * small.figures()["mean_absolute_error"] == pytest.approx(large.figures()["mean_absolute_error"])
    assert small.compared_by.beside.keys() == {"spearman", "r2"}


def test_the_difference_of_two_models_is_that_of_their_pairs() -> None:
    one, other = scores("y" * 70 + "y" * 12 + "n" * 4 + "n" * 14), scores("y" * 70 + "n" * 12 + "y" * 4 + "n" * 14)
    found = difference(one, other)
    assert (found.merit, found.alone) == (pytest.approx(0.08), (12, 4))
    assert found.p == pytest.approx(0.076813, abs=1e-6)  # of scipy.stats.binomtest(4, 16)
    assert [*found.interval] == pytest.approx([-0.000610, 0.157473], abs=1e-6)
    far = difference(one, scores("n" * 70 + "n" * 12 + "y" * 4 + "n" * 14))
    assert (far.interval.low > 0, far.p < 1e-6) == (True, True)
    groups = tuple(str(place // 4) for place in range(100))
    by_group = difference(scores("y" * 82 + "n" * 18, groups), scores("y" * 70 + "n" * 12 + "y" * 4 + "n" * 14, groups))
    assert by_group.p > found.p


@by_turns(("groups", "size", "alike"), [(30, 8, 0.7), (100, 1, 0.0)])
@pytest.mark.parametrize("draws", [40, pytest.param(100, marks=[pytest.mark.full, pytest.mark.at_length])])
def test_intervals_hold_the_truth_in_95_of_100_draws(groups: int, size: int, alike: float, draws: int) -> None:
    """Of every figure; `python -m benchmarks intervals` has more draws."""
    room = 3 * (0.95 * 0.05 / draws) ** 0.5  # of so many draws
    held = coverage(groups, size, alike, draws)
    naive = held.pop(NAIVE)
    assert len(held) == 8
    assert all(0.93 - room <= share <= 0.97 + room for share in held.values()), held
    assert (naive < 0.9) is (size > 1)


def test_ends_are_floats_within_what_a_share_can_be() -> None:
    assert [type(end) for end in scores("y" * 5).intervals["accuracy"]] == [float, float]
    one, other = scores("yyyy", ("a", "a", "b", "b")), scores("nnnn", ("a", "a", "b", "b"))
    apart = difference(one, other)
    assert (apart.merit, apart.interval.high, apart.alone) == (1.0, 1.0, (4, 0))
    assert apart.p < 0.5
    assert difference(one, one).p == 1.0


def test_a_few_groups_that_are_all_alike_are_about_as_wide_as_so_many_images() -> None:
    alike = scores("y" * 90, tuple(str(place // 3) for place in range(90))).intervals["accuracy"]
    single = scores("y" * 30).intervals["accuracy"]
    assert alike.high == single.high == 1
    assert abs(alike.low - single.low) < 0.03
    two = scores("y" * 100, ("a", "a", *map(str, range(98)))).intervals["accuracy"]
    assert two.low <= scores("y" * 100).intervals["accuracy"].low + 0.003


def test_of_a_single_group_the_error_of_a_difference_is_unknown() -> None:
    names = tuple("abcd")
    one, other = (
        GradedScores(names, names, names, (1.0,) * 4, ("g",) * 4, (1.0, 2, 3, 4), numbers)
        for numbers in ((1.0, 2, 3, 5), (1.0, 1, 1, 1))
    )
    found = difference(one, other)
    assert (found.interval, found.p, found.alone) == (None, 1.0, None)
    assert found.merit == pytest.approx(1.5 - 0.25)
