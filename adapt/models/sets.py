"""Sets of classes with a guarantee (split conformal prediction), over all images or by class.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, for both guarantees; Sadinle, Lei and
Wasserman, JASA 2019 (LAC); Romano, Sesia and Candès, NeurIPS 2020 (APS); Angelopoulos et al., ICLR 2021 (RAPS); Lee,
Barber and Willett, 2023, for images in groups. Deviations: APS and RAPS are not randomised, so that an answer does not
depend on chance; their sets are a little larger, and never empty.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import first_of

Score = Literal["lac", "aps", "raps"]
MOST = plain.NAMES  # calibration images in an adapter's header
_PENALTY, _FREE_RANKS = 0.01, 1  # of RAPS, as in its paper's experiments on ImageNet
_ROUNDING = 1e-9
_SAME = 1e-6  # probabilities of an image in fp32 differ by less between batches of other sizes


@dataclass(frozen=True)
class Sets:
    """Scores of calibration images, from which the set of an image follows at any level.

    `scores` are the scores of the true classes in ascending order, and `sizes` the sizes of the groups that their
    images belong to: of all images, or with `by_class` of the images of each class. `settings` identifies the settings
    of the model that was calibrated, and `images_id` the images (see `items_id`). With `of_items`, each is an item of
    several images.
    """

    score: Score
    by_class: bool
    scores: tuple[tuple[float, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    settings: str
    images_id: str = ""
    of_items: bool = False

    @classmethod
    def of(
        cls,
        probabilities: Tensor,
        labels: Tensor,
        groups: Sequence[str],
        score: Score,
        by_class: bool,
        settings: str,
        images_id: str = "",
        of_items: bool = False,
    ) -> Sets:
        """Return the sets of a model from its `probabilities` `(n, c)` of calibration images with `labels` `(n,)`."""
        own = strangeness(probabilities, score).gather(1, labels[:, None])[:, 0].tolist()
        part_of = labels.tolist() if by_class else [0] * len(own)
        in_group = Counter(zip(part_of, groups, strict=True))
        parts: list[list[tuple[float, int]]] = [[] for _ in range(probabilities.shape[1] if by_class else 1)]
        for value, part, group in zip(own, part_of, groups, strict=True):
            parts[part].append((value, in_group[part, group]))
        ordered = [sorted(part) for part in parts]
        scores, sizes = (tuple(tuple(each[at] for each in part) for part in ordered) for at in (0, 1))
        return cls(score, by_class, scores, sizes, settings, images_id, of_items)  # type: ignore[arg-type]

    @property
    def images(self) -> int:
        return sum(map(len, self.scores))

    @cached_property
    def _reached(self) -> list[list[float]]:
        """The number of groups up to each score, in which an image counts as a share of its group: one, or by class."""
        return [[*accumulate(1 / size for size in sizes)] for sizes in self.sizes]

    @property
    def groups(self) -> list[int]:
        """The number of groups of images, of all images or of each class."""
        return [round(reached[-1]) if reached else 0 for reached in self._reached]

    def limits(self, level: float) -> list[float]:
        """Return the largest score of a class in a set, or infinity where there are too few images: one, or by class.

        Each group weighs one over the number of groups and one more, for the image to come.
        """
        limits = []
        for scores, reached in zip(self.scores, self._reached, strict=True):
            place = bisect_left(reached, level * ((reached[-1] if reached else 0) + 1) - _ROUNDING)
            limits.append(scores[place] if place < len(scores) else math.inf)
        return limits

    def hold(self, probabilities: Tensor, level: float) -> Tensor:
        """Return whether each class is in the set of each image `(b, c)`, from their probabilities `(b, c)`."""
        limits = torch.tensor(self.limits(level), dtype=torch.double, device=probabilities.device)
        return strangeness(probabilities, self.score) <= limits + _SAME

    def check(self, level: float, settings: str, of_items: bool = False) -> None:
        """Raise AdaptError if a model with these `settings` gives no sets at this level, and say why.

        The settings are other ones than were calibrated, or no class could be left out, or the level is outside (0, 1),
        or `of_items`, whether the sets are wanted of items of several images, is not as in the calibration.
        """
        check_level(level)
        if self.of_items != of_items:
            one, other = ("single images", "items of several images")[:: -1 if self.of_items else 1]
            raise AdaptError(f"the sets of this adapter were calibrated on {one}, and promise nothing for {other}")
        if settings != self.settings:
            raise AdaptError(
                "the sets of this adapter were calibrated with other settings (classes, temperature, blend or method): "
                "calibrate them again with `adapt sets`, or leave the change out"
            )
        if not any(limit < math.inf for limit in self.limits(level)):
            least, most = math.ceil(level / (1 - level) - _ROUNDING), max(self.groups)
            of_class = " of a class" if self.by_class else ""
            noun = "items" if self.of_items else "images"
            noun = noun if sum(self.groups) == self.images else f"groups of {noun}"
            raise AdaptError(
                f"sets at {level:g} need {least:,} or more calibration {noun}{of_class}, and the adapter has {most:,}: "
                "every class would be in every set. Calibrate on more, or ask for less"
            )

    def promise(self, level: float, class_names: Sequence[str]) -> str:
        """Return what is guaranteed at a level, in words."""
        kept, groups = f"{100 * level:g} %", sum(self.groups)
        noun = "items" if self.of_items else "images"
        like = f"{noun} like the {self.images:,} calibration {noun}"
        if groups < self.images:
            like = f"{noun} of new groups like those of the {self.images:,} calibration {noun}, one from each group"
        if not self.by_class:
            return (
                f"the set holds the true class for at least {kept} of {like}, on average over draws of such {noun}; "
                "not for each class"
            )
        open_classes = [name for name, limit in zip(class_names, self.limits(level)) if limit == math.inf]
        always = f"; in every set, with too few images: {first_of(open_classes)}" if open_classes else ""
        return (
            f"for each class, the set holds it for at least {kept} of its {like}, on average over draws of such "
            f"{noun}{always}"
        )


def check_level(level: float) -> None:
    """Raise AdaptError unless `level` is a number between 0 and 1."""
    if not (isinstance(level, Real) and 0 < level < 1):
        raise AdaptError(f"sets is {level!r}; expected the level of sets of classes, such as 0.9")


def strangeness(probabilities: Tensor, score: Score) -> Tensor:
    """Return the score of each class for each image `(b, c)` in fp64, larger for a less likely class."""
    probabilities = probabilities.double()
    if score == "lac":
        return 1 - probabilities
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    scores = ranked.cumsum(-1)
    if score == "raps":
        scores = scores + _PENALTY * (torch.arange(1, scores.shape[1] + 1) - _FREE_RANKS).clamp_min(0).to(scores)
    return torch.zeros_like(scores).scatter(-1, order, scores)
