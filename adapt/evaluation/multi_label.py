"""Multi-label scores, of images with any number of classes: average precision of the ranking, and F1 of decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adapt.common.plain import JsonObject
from adapt.common.shown import SEPARATOR
from adapt.data.item import Item
from adapt.evaluation import intervals
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import Figure, Scores, reliability, scored
from adapt.models.prediction import HALF, NONE, finite


@dataclass(frozen=True)
class MultiLabelScores(Scores):
    """Multi-label scores, in which `actual` and `predicted` give all classes of an image as one text.

    `confidence` is the probability of the most probable class. `average_precision` is given for each class that occurs
    in some image. `influences` are the derivatives of mAP with respect to a weight of each image. `probabilities`
    `(n, c)` are those of all classes, and `truth` `(n, c)` says which are correct.
    """

    main: ClassVar[str] = "mean_average_precision"
    main_title: ClassVar[str] = "mAP"
    compared_by: ClassVar[Figure] = Figure(main, main_title)
    class_figure: ClassVar[str] = "average precision"
    has_probabilities: ClassVar[bool] = False

    hits: tuple[bool, ...] = ()
    average_precision: dict[str, float] | None = None
    influences: tuple[float, ...] = ()
    probabilities: Tensor = field(default_factory=lambda: torch.zeros(0, 0), compare=False)
    truth: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool), compare=False)

    @classmethod
    def of(
        cls, items: Sequence[Item], probabilities: Tensor, truth: Tensor, class_names: Sequence[str]
    ) -> MultiLabelScores:
        """Return the scores of `items` from probabilities `(n, c)` and the correct classes as bool `truth` `(n, c)`."""
        from sklearn.metrics import average_precision_score

        decided = probabilities >= HALF
        best = probabilities.max(-1)
        first = truth.gather(1, best.indices[:, None])[:, 0]
        # class by class: scikit-learn reads a single column as two classes, and warns of a class that no image has
        present = truth.any(0).nonzero()[:, 0].tolist()
        actual, predicted = ([_joined(row, class_names) for row in rows] for rows in (truth, decided))
        return cls(
            **vars(scored(items, [(predicted, best.values.tolist())], actual)),
            hits=tuple(torch.where(truth.any(-1), first, ~decided.any(-1)).tolist()),
            average_precision={
                class_names[label]: float(
                    average_precision_score(truth[:, label].numpy(), probabilities[:, label].numpy())
                )
                for label in present
            },
            influences=tuple(_influences(probabilities[:, present], truth[:, present]).tolist()),
            probabilities=probabilities,
            truth=truth,
        )

    @property
    def merits(self) -> Tensor:
        """The pseudo-values of the infinitesimal jackknife (Efron, 1982), as mAP is no mean over images."""
        return self.mean_average_precision + self.images * torch.tensor(self.influences, dtype=torch.double)

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each image's most probable class is correct, or no class is predicted if the image has no class."""
        return self.hits

    @property
    def by_class(self) -> dict[str, float]:
        """The average precision of each class that occurs in some image."""
        return self.average_precision or {}

    @property
    def by_class_intervals(self) -> dict[str, Interval]:
        """None, as an average precision is no share of images."""
        return {}

    @property
    def mean_class_accuracy(self) -> float:
        return self.accuracy  # an image has no single class

    @property
    def mean_average_precision(self) -> float:
        return sum(self.by_class.values()) / max(1, len(self.by_class))

    def reliability(self) -> list[dict[str, float]]:
        """Return the bins of the probabilities of all classes, in which each class of an image counts as one."""
        return reliability(self.probabilities, self.truth)

    def figures(self) -> JsonObject:
        return super().figures() | {
            "mean_average_precision": self.mean_average_precision,
            **self._f1_at(np.arange(self.images)),
        }

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of accuracy and F1, and that of mAP, by its influences on the scale of shares."""
        found = {"accuracy": intervals.of_share(torch.tensor(self.right), self.kept_with)}
        scales = {"f1": intervals.SHARE, "mean_class_f1": intervals.SHARE}
        found |= intervals.of_figures(self._f1_at, scales, self.kept_with)
        ranked = self.mean_average_precision
        if 0 < ranked < 1 and len(set(self.kept_with)) > 1:
            slope, to, back = ranked * (1 - ranked), *intervals.SHARE
            ends = intervals.of_mean(self.merits, self.kept_with) or ()
            found[self.main] = Interval(*(float(back(to(ranked) + (end - ranked) / slope)) for end in ends))
        return found

    def _f1_at(self, places: np.ndarray) -> dict[str, float]:
        """Return F1 over all decisions on the images at `places`, and its mean over the classes that they have."""
        probabilities, truth = (each[torch.from_numpy(places)] for each in (self.probabilities, self.truth))
        decided = probabilities >= HALF
        both, yes, true = (each.sum(0).double() for each in (decided & truth, decided, truth))
        of_classes = (2 * both / (yes + true))[true > 0]
        every = (2 * both.sum() / (yes + true).sum()).nan_to_num()
        return {"f1": float(every), "mean_class_f1": float(of_classes.mean().nan_to_num())}

    def summary(self) -> dict[str, str]:
        return {"decisions": f"{self.share('f1', 'F1')}, {self.share('mean_class_f1', 'mean F1 of classes')}"}

    def lines(self, of: str) -> Iterator[str]:
        ranked, likeliest = self.share(self.main, self.main_title), self.share("accuracy")
        yield f"{ranked}, {self.summary()['decisions']}; likeliest class right for {likeliest} of {of}"


def _influences(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Return the derivatives `(n,)` of mAP with respect to weights of the images, at weights of 1, which add up to 0.

    Images of equal probability are counted together, as by scikit-learn.
    """
    ranked, order = probabilities.double().sort(0, descending=True)
    hits, ascending = truth.gather(0, order).double(), -ranked.T.contiguous()
    first, last = (torch.searchsorted(ascending, ascending, right=bool(after)).T - after for after in (0, 1))
    count, precision = last + 1.0, hits.cumsum(0).gather(0, last) / (last + 1)
    gained, lost = (
        (hits * each / count).flip(0).cumsum(0).flip(0).gather(0, first) for each in (torch.ones(()), precision)
    )
    average = (hits * precision).sum(0) / hits.sum(0)
    influences = (hits * (precision - average + gained) - lost) / hits.sum(0)
    return torch.zeros_like(ranked).scatter(0, order, influences).sum(1) / max(1, truth.shape[1])


def prior_bias(logits: Tensor, labels: Tensor) -> float:
    """Return the bias to add to logits `(n, c)` so that their mean sigmoid is the fraction of positive `labels`."""
    from scipy.optimize import brentq

    logits, share = finite(logits).double(), labels.double().mean()
    share = share.clamp(1 / (2 * labels.numel()), 1 - 1 / (2 * labels.numel()))
    low, high = (float(share.logit() - end) for end in (logits.max(), logits.min()))
    found: float = brentq(lambda bias: float((logits + bias).sigmoid().mean() - share), low - 1, high + 1)
    return found


def _joined(row: Tensor, class_names: Sequence[str]) -> str:
    return SEPARATOR.join(class_names[label] for label in row.nonzero()[:, 0].tolist()) or NONE
