"""Confidence intervals at 95 % of the figures of test images, which may come in groups.

Groups are what shares its luck, such as the photographs of one patient, or the questions about one image. An interval
is over draws of other test images, or other groups, of the same kind; it says nothing of another training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.95
FEW_IMAGES, FEW_GROUPS = 100, 30  # below them, intervals are rough
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)  # standard errors to each side, 1.96


class Interval(NamedTuple):
    """The two ends of a confidence interval at 95 %."""

    low: float
    high: float

    def within(self, least: float, most: float) -> Interval:
        """Return the part of the interval that is at least `least` and at most `most`."""
        return Interval(float(max(least, self.low)), float(min(most, self.high)))


def of_share(right: Tensor, groups: Sequence[str], weights: Tensor | None = None) -> Interval:
    """Return the interval of a share: of the mean of `right` `(n,)`, or its mean weighted by `weights` `(n,)`.

    Where images are independent and count equally, it is Wilson's (1927). Otherwise it follows Agresti and Coull
    (1998), by groups: right answers and wrong ones are added, twice each as many as lie between a usual group and one
    image, so that a share near 0 or 1 has a width, and the variance is that between groups.
    """
    hits, count = right.double(), len(right)
    if weights is None and len(set(groups)) == count:
        return _wilson(float(hits.mean()), count)
    own = torch.ones(count, dtype=torch.double) if weights is None else weights.double()
    sums, sizes = (_by_group(values, groups) for values in (hits * own, own))
    added = (sizes.mean() + own.mean()) / 2
    sums = torch.cat([sums, added * torch.tensor([1.0, 1.0, 0.0, 0.0]).double()])
    sizes = torch.cat([sizes, added.expand(4)])
    share = float(sums.sum() / sizes.sum())
    half = _t(len(sums)) * _ratio_error(sums, sizes, share)
    return Interval(share - half, share + half).within(0, 1)


def of_balanced(right: Tensor, classes: Sequence[str], groups: Sequence[str]) -> Interval:
    """Return the interval of the balanced accuracy: of the mean over `classes` `(n,)` of the share of `right` `(n,)`.

    It is Wilson's for as many images as would give the same error, which two images of the usual accuracy, added to
    each class, keep from being 0 for a class with few. By groups, it is the wider of this one and of that of a share.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes))}
    label, hits = torch.tensor([numbers[name] for name in classes]), right.double()
    images = label.bincount().double()
    correct = torch.zeros_like(images).index_add(0, label, hits)
    usual = (hits.sum() + 2) / (len(hits) + 4)
    likely = (correct + 2 * usual) / (images + 2)
    variance = (likely * (1 - likely) / images).mean() / len(images)
    found = _wilson(float((correct / images).mean()), float(likely.mean() * (1 - likely.mean()) / variance))
    if len(set(groups)) == len(groups):
        return found
    by_group = of_share(right, groups, 1 / images[label])
    return Interval(min(found.low, by_group.low), max(found.high, by_group.high))


def _wilson(share: float, count: float) -> Interval:
    z2 = NORMAL**2
    centre, half = share + z2 / (2 * count), NORMAL * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Interval((centre - half) / (1 + z2 / count), (centre + half) / (1 + z2 / count)).within(0, 1)


def of_mean(values: Tensor, groups: Sequence[str]) -> Interval | None:
    """Return the interval of the mean of `values` `(n,)`, by the variance between groups and Student's t.

    It is None for a single group, because the error is then unknown.
    """
    mean, count = float(values.double().mean()), len(set(groups))
    if count < 2:
        return None
    half = _t(count) * standard_error(values, groups)
    return Interval(mean - half, mean + half)


class Scale(NamedTuple):
    """A scale on which a figure's error is about the same everywhere, and the way back."""

    to: Callable[[Any], Any]
    back: Callable[[Any], Any]


SHARE = Scale(lambda x: np.log(x / (1 - x)), lambda x: 1 / (1 + np.exp(-x)))
CORRELATION = Scale(np.arctanh, np.tanh)
ERROR = Scale(np.log, np.exp)
AT_MOST_ONE = Scale(lambda x: -np.log(1 - x), lambda x: 1 - np.exp(-x))
MOST_LOTS = 200


def of_figures(
    figures: Callable[[np.ndarray], Mapping[str, float]], scales: Mapping[str, Scale], groups: Sequence[str]
) -> dict[str, Interval]:
    """Return the intervals of `figures(places)`, numbers computed from the images at `places` `(n,)`, by name.

    The error is that of the jackknife, which leaves out each group in turn (each of 200 lots, if there are more), on
    the scale of the figure, with Student's t. Of 30 groups, this holds its level where a bootstrap over groups falls to
    90 %. A figure has no interval if it, or it without one of the groups, is at the end of its scale or undefined,
    because its error is then unknown.
    """
    numbers = {name: number % MOST_LOTS for number, name in enumerate(dict.fromkeys(groups))}
    lot, every = np.array([numbers[name] for name in groups]), np.arange(len(groups))
    count, found = len(set(numbers.values())), dict[str, Interval]()
    if count < 2:
        return found
    left_out, whole = [figures(every[lot != number]) for number in range(count)], figures(every)
    for name, scale in scales.items():
        with np.errstate(all="ignore"):
            *values, value = scale.to(np.array([each[name] for each in [*left_out, whole]]))
            half = _t(count) * math.sqrt((count - 1) * np.var(values))
        if math.isfinite(value + half) and half > 0:
            found[name] = Interval(float(scale.back(value - half)), float(scale.back(value + half)))
    return found


def of_difference(one: Tensor, other: Tensor, groups: Sequence[str]) -> tuple[Interval | None, float]:
    """Return the interval of the mean of `one` minus that of `other`, values `(n,)` of the same images, and a p-value.

    The p-value is that of a t test between groups. For right and wrong answers, half a usual group in which one is
    right and the other wrong, and half a group of the reverse, are added twice each, as Agresti and Min (2005) do for
    independent images. Of a single group, the error is unknown.
    """
    from scipy.special import stdtr

    apart, right_or_wrong = one.double() - other.double(), one.dtype == torch.bool
    sums, sizes = _by_group(apart, groups), _by_group(torch.ones(len(apart)).double(), groups)
    if len(sums) < 2:
        return None, 1.0
    if right_or_wrong:
        added = sizes.mean() / 2
        sums = torch.cat([sums, added * torch.tensor([1.0, 1.0, -1.0, -1.0]).double()])
        sizes = torch.cat([sizes, added.expand(4)])
    mean = float(sums.sum() / sizes.sum())
    error = _ratio_error(sums, sizes, mean)
    half = _t(len(sums)) * error
    p = float(2 * stdtr(len(sums) - 1, -abs(mean) / error)) if error else float(mean == 0)
    found = Interval(mean - half, mean + half)
    return found.within(-1, 1) if right_or_wrong else found, p


def standard_error(values: Tensor, groups: Sequence[str]) -> float:
    """Return the cluster-robust standard error of the mean of `values` `(n,)`; each group in `groups` is a cluster.

    The correction for few groups is included. Returns 0 for a single group, because the error is then unknown.
    """
    if len(set(groups)) < 2:
        return 0.0
    sums, sizes = _by_group(values.double(), groups), _by_group(torch.ones(len(values)).double(), groups)
    return _ratio_error(sums, sizes, float(values.double().mean()))


def in_percent(interval: Sequence[float]) -> str:
    """Return the ends of a share's interval in per cent, as in `76.0 to 85.9`."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def between(ends: Sequence[float] | None, form: str = "") -> str:
    """Return the ends of an interval as text, as in ` (76.0 to 85.9)` in per cent, or "" for none.

    A `form` such as .3f is that of numbers that are no shares.
    """
    if not ends:
        return ""
    return f" ({' to '.join(format(end, form) for end in ends) if form else in_percent(ends)})"


def legend(images: int, groups: int) -> str:
    """Return what the intervals of so many images, in so many groups, are, and whether they are rough, as text."""
    text = "95 % confidence interval"
    if groups < images:
        rough = f"; only rough with fewer than {FEW_GROUPS} groups" * (groups < FEW_GROUPS)
        return f"{text}, by {groups} group{'s' * (groups != 1)}{rough}"
    return text + f"; only rough with fewer than {FEW_IMAGES} images" * (images < FEW_IMAGES)


def _by_group(values: Tensor, groups: Sequence[str]) -> Tensor:
    """Return the sum of `values` `(n,)` in each group."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    group = torch.tensor([numbers[name] for name in groups])
    return torch.zeros(len(numbers), dtype=torch.double).index_add(0, group, values)


def _ratio_error(sums: Tensor, sizes: Tensor, ratio: float) -> float:
    """Return the standard error of the sum of `sums` over that of `sizes`, of independent groups."""
    count = len(sums)
    return float((count / (count - 1) * (sums - ratio * sizes).square().sum()).sqrt() / sizes.sum())


def _t(count: int) -> float:
    """Return the factor of a standard error that was estimated from `count` groups (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + LEVEL) / 2))
