"""How often the intervals at 95 % of figures hold the truth, in simulated draws of independent and of grouped images.

Beside the intervals of the toolkit stands the one that takes grouped images for independent ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from scipy.stats import norm

from adapt.data import Item
from adapt.evaluation.intervals import Interval
from adapt.evaluation.multi_label import MultiLabelScores
from adapt.evaluation.numbers import GradedScores
from adapt.evaluation.scores import Scores, difference
from benchmarks.measure import Row

DRAWS = 2000
CASES = (  # groups, images of each about, the share of a number's variance that is its group's
    (100, 1, 0.0), (400, 1, 0.0), (30, 8, 0.3), (30, 8, 0.7), (60, 4, 0.3), (100, 3, 0.6),
)  # fmt: skip
NAIVE = "accuracy, groups ignored"


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each case, with the share of draws whose interval holds the truth, by figure."""
    for groups, size, alike in CASES:
        case = f"{groups} groups of about {size}, {alike:g} of the variance between" if size > 1 else f"{groups} images"
        progress(case)
        held = coverage(groups, size, alike, DRAWS)
        shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in held.items())
        yield {"case": case, "draws": DRAWS, "held": held, "text": shown}


def coverage(groups: int, size: int, alike: float, draws: int) -> dict[str, float]:
    """Return the share of `draws` whose interval holds the truth, by figure."""
    draw, held = np.random.default_rng(1), Counter[str]()
    for _ in range(draws):
        for name, ends in _intervals(*_drawn(draw, groups, size, alike)).items():
            held[name] += ends.low <= _truth(size > 1, alike)[name] <= ends.high
    return {name: count / draws for name, count in held.items()}


def _drawn(draw: np.random.Generator, groups: int, size: int, alike: float) -> tuple[np.ndarray, ...]:
    """Return the groups of images, and two normal numbers of each: a target, and what a model says of it."""
    sizes = np.ones(groups, int) if size == 1 else draw.integers(size // 2, 2 * size, groups)
    group = np.repeat(np.arange(groups), sizes)
    between, within = draw.normal(size=(groups, 2))[group], draw.normal(size=(len(group), 2))
    numbers = alike**0.5 * between + (1 - alike) ** 0.5 * within
    return group, numbers[:, 0], 0.8 * numbers[:, 0] + 0.42 * numbers[:, 1]


@cache
def _truth(grouped: bool, alike: float) -> dict[str, float]:
    """Return the figures of very many images."""
    group, target, number = _drawn(np.random.default_rng(0), 100_000, 4 if grouped else 1, alike)
    one, other, graded, several = _scores(group, target, number)
    figures = one.figures() | graded.figures() | several.figures()
    names = ("mean_class_accuracy", "mean_absolute_error", "spearman", "r2", "mean_average_precision", "f1")
    truth = {name: figures[name] for name in names} | {"accuracy": one.accuracy, NAIVE: one.accuracy}
    return truth | {"difference": one.accuracy - other.accuracy, "mean_class_accuracy": one.mean_class_accuracy}


def _intervals(group: np.ndarray, target: np.ndarray, number: np.ndarray) -> dict[str, Interval]:
    one, other, graded, several = _scores(group, target, number)
    naive = Scores(one.paths, one.actual, one.predicted, one.confidence)
    apart = difference(one, other).interval
    assert apart is not None
    found = one.intervals | {"difference": apart, NAIVE: naive.intervals["accuracy"]}
    found |= {name: graded.intervals[name] for name in ("mean_absolute_error", "spearman", "r2")}
    return found | {name: several.intervals[name] for name in ("mean_average_precision", "f1")}


def _scores(
    group: np.ndarray, target: np.ndarray, number: np.ndarray
) -> tuple[Scores, Scores, GradedScores, MultiLabelScores]:
    """Return scores of two classifiers, of which the second is biased, of a regressor, and of two labels an image."""
    names, groups = tuple(map(str, range(len(group)))), tuple(map(str, group))
    actual = tuple("ab"[int(value > 0.5)] for value in target)
    said = [tuple("ab"[int(value > 0.5)] for value in each) for each in (number, number + 0.4)]
    sure = (1.0,) * len(names)
    one, other = (Scores(names, actual, each, sure, groups) for each in said)
    graded = GradedScores(names, names, names, sure, groups, tuple(target), tuple(number))
    items = [Item.of(path=name, labels=("a",), group=own) for name, own in zip(names, groups, strict=True)]
    chances = torch.from_numpy(norm.cdf(np.stack([number, -number], 1)))
    truth = torch.from_numpy(np.stack([target > 0.8, target < -0.3], 1))
    return one, other, graded, MultiLabelScores.of(items, chances, truth, ("a", "b"))
