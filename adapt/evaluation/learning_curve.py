"""The learning curve: accuracy by the labelled images of a class, and about how many more would reach a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapt.evaluation.intervals import NORMAL

AHEAD = 2.0  # times the images at hand: the default target is what so many should reach
FURTHEST = 4.0  # times the images at hand, beyond which no number is said
SURE = 0.92  # quantile of Student's t, so that 84 % lie between its two ends
LEAST = 1e-3  # error of a power law, as an error of 0 has no logarithm
GROUPED = 1.2  # images of a group, above which a number of images means little, as more of a group adds little


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
        cls, images: Sequence[float], accuracies: np.ndarray, target: float | None = None, per_group: float = 1.0
    ) -> LearningCurve:
        """Return the curve of `accuracies` `(trials, k)` in [0, 1] by `images` a class `(k,)`, the fewest first.

        The last ones are of all images, with `per_group` images in a usual group, and the others of parts of them that
        differ from trial to trial. All are of the same test images. Half of the images differ as much as all of them do
        from other images (half-sampling), which says how lucky those at hand are. By default, the target is what twice
        the images should reach, in whole per cent. The error falls as a power of the images (Hestness et al., Deep
        Learning Scaling is Predictable, Empirically, 2017). A number is said up to three times those at hand, if 84 %
        of its distribution lie in half to twice of it.
        """
        from scipy.special import stdtrit

        rows, sizes = np.asarray(accuracies, float), np.asarray(images, float)
        mean, spread = rows.mean(0), rows.std(0, ddof=1)
        spread[-1] = spread[-2:][0]  # one training has none
        bands = mean - NORMAL * spread, mean + NORMAL * spread
        points = [Point(*map(float, each)) for each in zip(sizes, mean, *(ends.clip(0, 1) for ends in bands))]
        now = float(mean[-1])
        if len(sizes) < 3:  # any two lie on a line
            return cls(points, target or now, None, "there are too few images for a curve")
        errors, steps = np.log((1 - rows).clip(LEAST)), np.log(sizes / sizes[-1])
        powers = -errors @ (steps - steps.mean()) / np.square(steps - steps.mean()).sum()
        power = float(powers.mean())
        here = float(errors.mean() + power * steps.mean())  # log of the error that the law gives the images at hand
        if target is None:
            ahead = max(round(100 - 100 * math.exp(here) * AHEAD**-power), math.floor(100 * now) + 1)
            target = min(ahead, 100) / 100
        elif now >= target:
            return cls(points, target, 0)
        if max(now, target) > 1 - LEAST:
            return cls(points, target, None, "hardly any error is left to measure by")
        if per_group > GROUPED:
            return cls(points, target, None, "images come in groups, and more of the same groups would help less")
        if power <= 0:
            return cls(points, target, None, "the accuracy does not grow with the images")
        growth = max((here - math.log(1 - target)) / power, 1e-9)  # log of the images needed, over those at hand
        if growth > math.log(FURTHEST):
            return cls(points, target, None, f"it would take more than {FURTHEST:g} times the images at hand")
        more, noise = math.expm1(growth), math.hypot(errors[:, -2].std(ddof=1), growth * powers.std(ddof=1)) / power
        if noise * (1 + more) / more * stdtrit(len(rows) - 1, SURE) > math.log(2):
            return cls(points, target, None, "other images of the same number would change the curve too much")
        return cls(points, target, max(1, round(sizes[-1] * more)))

    def __str__(self) -> str:
        target = f"{100 * self.target:g} % on the test images"
        if self.labels is None:
            return f"How many more labels a class {target} would take cannot be told: {self.reason}"
        if not self.labels:
            return f"No more labels are needed for {target}"
        return f"About {self.labels} more label{'s' * (self.labels > 1)} a class for {target}"
