"""The learning curve: accuracy by the labelled images of a class, and about how many more would reach a target.

The error is taken to fall as a power of the number of images (Hestness et al., Deep Learning Scaling is Predictable,
Empirically, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapt.evaluation.intervals import NORMAL

AHEAD = 2.0  # times the images at hand: the default target is what so many should reach
FURTHEST = 4.0  # times the images at hand, beyond which no number is said
SURE = 0.9  # quantile of Student's t, so that 80 % lie between its two ends
LEAST = 1e-3  # error of a power law, as an error of 0 has no logarithm


@dataclass(frozen=True)
class Point:
    """The mean accuracy of trainings on so many `images` a class, and the band in which 95 % of them lie."""

    images: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """The points of a learning curve, the fewest images first, and what they say of a `target` accuracy.

    About so many more `labels` a class would reach the target: 0 if it is reached, and None if it cannot be told, for a
    `reason`.
    """

    points: list[Point]
    target: float
    labels: int | None
    reason: str = ""

    @classmethod
    def of(
        cls, images: Sequence[float], accuracies: np.ndarray, target: float | None = None, independent: bool = False
    ) -> LearningCurve:
        """Return the curve of `accuracies` `(trials, k)` in [0, 1] by `images` a class `(k,)`, the fewest first.

        All are of the same test images. Trials are `independent` if each has images of its own; otherwise each has the
        same images in the end, and parts of them before. Half of the images differ from trial to trial as much as all
        of them differ from other images (half-sampling), which says how lucky those at hand are. By default, the target
        is what twice the images should reach, in whole per cent.

        A number is said up to three times the images at hand, if 80 % of its distribution lie within half and twice.
        """
        from scipy.special import stdtrit

        rows, sizes = np.asarray(accuracies, float), np.asarray(images, float)
        trials, mean, last = len(rows), rows.mean(0), -1 if independent else -2
        spread = rows.std(0, ddof=1) if trials > 1 else np.zeros(len(sizes))
        spread[-1] = spread[last:][0]
        bands = mean - NORMAL * spread, mean + NORMAL * spread
        points = [Point(*map(float, each)) for each in zip(sizes, mean, *(ends.clip(0, 1) for ends in bands))]
        now = float(mean[-1])
        if trials < 2 or len(sizes) < 2:
            return cls(points, target or now, None, "there are too few images or trainings for a curve")
        errors, steps = np.log((1 - rows).clip(LEAST)), np.log(sizes / sizes[-1])
        powers = -errors @ (steps - steps.mean()) / np.square(steps - steps.mean()).sum()
        power = float(powers.mean())
        here = float(errors.mean() + power * steps.mean())  # log of the error that the law gives the images at hand
        if target is None:
            target = max(round(100 - 100 * math.exp(here) * AHEAD**-power), math.floor(100 * now) + 1) / 100
        if now >= target:
            return cls(points, target, 0)
        if max(now, target) > 1 - LEAST:
            return cls(points, target, None, "hardly any error is left to measure by")
        if power <= 0:
            return cls(points, target, None, "the accuracy does not grow with the images")
        growth = max((here - math.log(1 - target)) / power, 1e-9)  # log of the images needed, over those at hand
        if growth > math.log(FURTHEST):
            return cls(points, target, None, f"it would take more than {FURTHEST:g} times the images at hand")
        noise = math.hypot(errors[:, last].std(ddof=1), growth * powers.std(ddof=1)) / power
        noise /= math.sqrt(trials) if independent else 1
        more = math.expm1(growth)
        if noise * (1 + more) / more * stdtrit(trials - 1, SURE) > math.log(2):
            return cls(points, target, None, "other images of the same number would change the curve too much")
        return cls(points, target, max(1, round(sizes[-1] * more)))

    def __str__(self) -> str:
        target = f"{100 * self.target:g} % on the test images"
        if self.labels is None:
            return f"How many more labels a class {target} would take cannot be told: {self.reason}"
        if not self.labels:
            return f"No more labels are needed for {target}"
        return f"About {self.labels} more label{'s' * (self.labels > 1)} a class for {target} (half to twice as many)"
