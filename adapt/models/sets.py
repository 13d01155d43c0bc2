"""Sets of classes and intervals of numbers with a guarantee (split conformal prediction, and CV+).

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, for both guarantees; Sadinle, Lei and
Wasserman, JASA 2019 (LAC); Romano, Sesia and Candès, NeurIPS 2020 (APS); Angelopoulos et al., ICLR 2021 (RAPS); Lee,
Barber and Willett, 2023, for images in groups; Lei et al., JASA 2018, for numbers, by absolute residuals; Barber et
al., Annals of Statistics 2021, and Romano, Sesia and Candès, 2020, for sets without images held back (CV+);
Silva-Rodríguez et al., CVPR 2025, for images answered together (Conf-OT). Deviations: the chance of randomised APS and
RAPS follows from an image's probabilities, so that answers stay the same; without it, sets are larger, and never empty.
Conf-OT has the uniform marginal alone, as that of calibration labels breaks the guarantee, and no logit overflows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from numbers import Real
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import first_of

Score = Literal["lac", "aps", "raps", "aps_random", "raps_random", "margin", "top_k"]
RESIDUAL: Final = "residual"  # the score of a number: how far it is from the true one
EVERY: Final = "every"  # the score of several labels: LAC of the least probable one of an image
OfImages = Score | Literal["residual", "every"]
MOST = plain.NAMES  # calibration images in an adapter's header
RAPS = {"penalty": 0.01, "free_ranks": 1}  # as in its paper's experiments on ImageNet
_ROUNDING = 1e-9
_SAME = 1e-6  # probabilities of an image in fp32 differ by less between batches of other sizes


class Calibration(NamedTuple):
    """The logits `(n, c)`, labels `(n,)` and numbers of groups `(n,)` of calibration images, for answers together."""

    logits: Tensor
    labels: Tensor
    groups: Tensor


@dataclass(frozen=True)
class Sets:
    """Scores of calibration images, from which the set of an image, or the interval of a number, follows at any level.

    `scores` are the scores of the true classes in ascending order, and `sizes` the sizes of the groups that their
    images belong to: of all images, with `by_class` of the images of each class, or, if they are crossed (CV+), of the
    images of each fold by the member of an average that has not learned from it. `settings` identifies the settings of
    the model that was calibrated, and `images_id` the images (see `items_id`). With `of_items`, each is an item of
    several images. With a `calibration`, the sets are of images that are answered together, and the scores are those of
    the calibration images among themselves.
    """

    score: OfImages
    by_class: bool
    scores: tuple[tuple[float, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    settings: str
    images_id: str = ""
    of_items: bool = False
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        answers: Tensor,
        truth: Tensor,
        groups: Sequence[Hashable],
        score: OfImages,
        by_class: bool,
        settings: str,
        images_id: str = "",
        of_items: bool = False,
        calibration: Calibration | None = None,
        folds: Sequence[int] = (),
    ) -> Sets:
        """Return the sets of a model from its answers to calibration images, and the truth about them `(n,)`.

        Answers are probabilities `(n, c)`, or numbers `(n,)` for the score `residual`; the truth is labels or numbers,
        or bool `(n, c)` for the score `every`, which of an image without a class is 0.
        Crossed sets need the fold of each image, which all images of a group share.
        """
        if score == RESIDUAL:
            own = (answers.double() - truth).abs().tolist()
        elif score == EVERY:
            own = scores_of(answers, score).masked_fill(~truth, 0).amax(1).tolist()
        else:
            own = scores_of(answers, score).gather(1, truth[:, None])[:, 0].tolist()
        part_of = truth.tolist() if by_class else list(folds) or [0] * len(own)
        in_group = Counter(zip(part_of, groups, strict=True))
        count = answers.shape[1] if by_class else max(folds, default=0) + 1
        parts: list[list[tuple[float, int]]] = [[] for _ in range(count)]
        for value, part, group in zip(own, part_of, groups, strict=True):
            parts[part].append((value, in_group[part, group]))
        ordered = [sorted(part) for part in parts]
        scores, sizes = (tuple(tuple(each[at] for each in part) for part in ordered) for at in (0, 1))
        return cls(score, by_class, scores, sizes, settings, images_id, of_items, calibration)  # type: ignore[arg-type]

    def beside(self, logits: Tensor) -> tuple[Sets, Tensor]:
        """Return the sets of images that are answered together, from their logits `(b, c)`, and answers `(b, c)`.

        Answers are logarithms of probabilities. The calibration images are transported in one batch with the others.
        """
        assert self.calibration is not None
        known, labels, groups = self.calibration
        own, answers = transported(torch.cat([known, logits.to(known)])).tensor_split([len(known)])
        how = (self.score, self.by_class, self.settings, self.images_id, self.of_items, self.calibration)
        return Sets.of(own.exp(), labels, groups.tolist(), *how), answers

    @property
    def together(self) -> bool:
        """Whether the sets are of images that are answered together."""
        return self.calibration is not None

    @property
    def crossed(self) -> bool:
        """Whether the sets are by the members of an average, each of which has not learned from one fold (CV+)."""
        return not self.by_class and len(self.scores) > 1

    @property
    def images(self) -> int:
        return sum(map(len, self.scores))

    @cached_property
    def _reached(self) -> list[list[float]]:
        """The number of groups up to each score, in which an image counts as a share of its group: one, or by class."""
        return [[*accumulate(1 / size for size in sizes)] for sizes in self.sizes]

    @property
    def groups(self) -> list[int]:
        """The number of groups of images, of all images, of each class or of each fold."""
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
        """Return whether each class is in the set of each image `(b, c)`, from their probabilities `(b, c)`.

        Crossed sets are from those of the members `(m, b, c)`, each of which compares with the images of its own fold.
        """
        assert self.score != RESIDUAL
        if self.crossed:
            below = torch.zeros(probabilities.shape[1:], dtype=torch.double)
            found = scores_of(probabilities, self.score).cpu()
            for own, scores, reached in zip(found, self.scores, self._reached, strict=True):
                place = torch.searchsorted(torch.tensor(scores, dtype=torch.double), own - _SAME)
                below += torch.tensor([0.0, *reached], dtype=torch.double)[place]
            return (below < level * (sum(self.groups) + 1) - _ROUNDING).to(probabilities.device)
        limits = torch.tensor(self.limits(level), dtype=torch.double, device=probabilities.device)
        return scores_of(probabilities, self.score) <= limits + _SAME

    def around(self, numbers: Tensor, level: float) -> list[tuple[float, float]]:
        """Return the interval at a level around each of the predicted numbers `(b,)`."""
        [limit] = self.limits(level)
        return [(number - limit, number + limit) for number in numbers.tolist()]

    def least(self, level: float) -> float:
        """Return the share of images that is promised at a level; if it is not above 0, nothing is.

        That of crossed sets is theorem 4 of Barber et al. Its second bound is for folds of equal size; the first is for
        all folds, and for groups, as twice a mean of p-values is one (Vovk and Wang, Biometrika 2020).
        """
        if not self.crossed:
            return level
        groups, folds = sum(self.groups), len(self.scores)
        lost = 2 * (folds - 1) / (groups + folds)
        if groups == self.images and len({*self.groups}) == 1:
            lost = min(lost, (1 - folds / groups) / (folds + 1))
        return 2 * level - 1 - lost

    def check(self, level: float, settings: str, of_items: bool = False, together: bool = False) -> None:
        """Raise AdaptError if a model with these `settings` gives no sets at this level, and say why.

        The settings are other ones than were calibrated, or no class could be left out, or the level is outside (0, 1),
        or `of_items` and `together`, whether the sets are wanted of items of several images and of images answered
        together, are not as in the calibration.
        """
        check_level(level)
        if together != self.together:
            one, other, how = "images answered together", "an image by itself", "give --together (`predict_together`)"
            if together:
                one, other, how = other, one, "leave --together out (`predict`)"
            raise AdaptError(
                f"the sets of this adapter were calibrated for {one}, and promise nothing for {other}: {how}, or "
                "calibrate them again with `adapt sets`"
            )
        if self.of_items != of_items:
            one, other = ("single images", "items of several images")[:: -1 if self.of_items else 1]
            raise AdaptError(f"the sets of this adapter were calibrated on {one}, and promise nothing for {other}")
        if settings != self.settings:
            raise AdaptError(
                "the sets of this adapter were calibrated with other settings (classes, temperature, blend or method): "
                "calibrate them again with `adapt sets`, or leave the change out"
            )
        least, most = math.ceil(level / (1 - level) - _ROUNDING), (sum if self.crossed else max)(self.groups)
        if most < least:
            of_class = " of a class" if self.by_class else ""
            noun = "items" if self.of_items else "images"
            noun = noun if sum(self.groups) == self.images else f"groups of {noun}"
            raise AdaptError(
                f"sets at {level:g} need {least:,} or more calibration {noun}{of_class}, and the adapter has {most:,}: "
                f"every {'number' if self.score == RESIDUAL else 'class'} would be inside. Calibrate on more, or ask "
                "for less"
            )
        if self.least(level) <= 0:
            folds = f"{len(self.scores)} folds of {sum(self.groups):,} images or groups of images"
            raise AdaptError(f"sets of {folds} promise nothing at {level:g}: ask for more, or use fewer folds")

    def promise(self, level: float, class_names: Sequence[str]) -> str:
        """Return what is guaranteed at a level, in words."""
        kept, groups = f"{100 * level:g} %", sum(self.groups)
        kept = f"{100 * self.least(level):.1f} % (in practice some {kept})" if self.crossed else kept
        known = "training" if self.crossed else "calibration"
        noun = "items" if self.of_items else "images"
        like = f"{noun} like the {self.images:,} {known} {noun}"
        if groups < self.images:
            like = f"{noun} of new groups like those of the {self.images:,} {known} {noun}, one from each group"
        if self.together:
            like = f"{like}, answered together as one batch (not one after another)"
        if not self.by_class:
            holds, no_part = f"the set holds {'every' if self.score == EVERY else 'the'} true class", "each class"
            if self.score == RESIDUAL:
                holds, no_part = "the interval holds the true number", "high or low numbers alone"
            return f"{holds} for at least {kept} of {like}, on average over draws of such {noun}; not for {no_part}"
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


def transported(logits: Tensor, epsilon: float = 1.0, rounds: int = 3) -> Tensor:
    """Return the logarithms of the probabilities `(n, c)` of images that are answered together, in fp64 (Conf-OT).

    Entropic optimal transport of the images to the classes, each of which gets the same share of them, by rounds of
    Sinkhorn's algorithm on `logits` `(n, c)`. All images are treated alike, so that their scores stay exchangeable.
    """
    scaled = logits.double() / epsilon
    of_images = torch.zeros_like(scaled[:, :1])
    for _ in range(rounds):
        of_classes = -(scaled + of_images).logsumexp(0, keepdim=True)  # up to a constant, which rows take away again
        of_images = -(scaled + of_classes).logsumexp(1, keepdim=True)
    return scaled + of_classes + of_images


def scores_of(probabilities: Tensor, score: Score | Literal["every"]) -> Tensor:
    """Return the score of each class for each image `(b, c)` in fp64, from 0, larger for a less likely class."""
    ranked, order = probabilities.double().sort(dim=-1, descending=True, stable=True)
    before = torch.arange(ranked.shape[-1]).to(ranked).expand_as(ranked)
    rivals = torch.cat([ranked[..., 1:2], ranked[..., :1].expand_as(ranked)], -1)[..., : ranked.shape[-1]]
    of_ranks = {"lac": 1 - ranked, EVERY: 1 - ranked, "margin": 1 + rivals - ranked, "top_k": before}
    scores = of_ranks.get(score, ranked.cumsum(-1))
    if score.startswith("raps"):
        scores = scores + RAPS["penalty"] * (before + 1 - RAPS["free_ranks"]).clamp_min(0)
    if score.endswith("random"):  # a number from 0 to 1 by which the class's own probability is left out
        mixed = ((1e3 * ranked).round() * (before + 1)).sum(-1, keepdim=True)
        scores = scores - (1e4 * mixed.sin()).remainder(1) * ranked
    return torch.zeros_like(scores).scatter(-1, order, scores)
