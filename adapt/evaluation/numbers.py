"""Scores of regression: the error of predicted numbers, and their correlation with the targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adapt.common.plain import JsonObject
from adapt.data.item import Item
from adapt.evaluation import intervals
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import Figure, Scores, scored
from adapt.models.prediction import finite

SCALES = {
    "mean_absolute_error": intervals.ERROR, "spearman": intervals.CORRELATION, "pearson": intervals.CORRELATION,
    "r2": intervals.AT_MOST_ONE,
}  # fmt: skip
TITLES = {"mean_absolute_error": "MAE", "spearman": "Spearman", "pearson": "Pearson", "r2": "R²"}


@dataclass(frozen=True)
class GradedScores(Scores):
    """Regression scores: true numbers `targets` and predicted `numbers`, added to scores of words such as good."""

    main: ClassVar[str] = "r2"
    main_title: ClassVar[str] = TITLES["r2"]
    compared_by: ClassVar[Figure] = Figure(
        "mean_absolute_error", "MAE", share=False, beside={name: TITLES[name] for name in ("spearman", "r2")}
    )
    has_classes: ClassVar[bool] = False
    has_probabilities: ClassVar[bool] = False

    targets: tuple[float, ...] = ()
    numbers: tuple[float, ...] = ()

    @classmethod
    def of(cls, items: Sequence[Item], answers: Tensor, targets: Tensor, words: Sequence[str]) -> GradedScores:
        """Return scores from answers `(n, 1 + w)`, numbers and probabilities of the words, and true numbers `(n,)`."""
        numbers, best = finite(answers[:, 0]), answers[:, 1:].max(-1)
        decided = [words[place] for place in best.indices.tolist()], best.values.tolist()
        of_words = scored(items, [decided], [item.class_names[0] for item in items])
        return cls(**vars(of_words), targets=tuple(targets.tolist()), numbers=tuple(numbers.tolist()))

    @property
    def merits(self) -> Tensor:
        return -(torch.tensor(self.numbers).double() - torch.tensor(self.targets).double()).abs()

    def figures(self) -> JsonObject:
        return super().figures() | self._at(np.arange(self.images))

    def _at(self, places: np.ndarray) -> dict[str, float]:
        """Return the figures of the images at `places`, by name in the order of the titles."""
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import r2_score

        numbers, targets = np.array(self.numbers)[places], np.array(self.targets)[places]
        # equal numbers have no correlation: scipy returns nan and warns, but they are no better than chance
        varies = np.ptp(numbers) > 0 and np.ptp(targets) > 0
        return {
            "mean_absolute_error": float(np.abs(numbers - targets).mean()),
            "spearman": float(spearmanr(numbers, targets).statistic) if varies else 0.0,
            "pearson": float(pearsonr(numbers, targets).statistic) if varies else 0.0,
            "r2": float(r2_score(targets, numbers)) if np.ptp(targets) > 0 else 0.0,
        }

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        return super().intervals | intervals.of_figures(self._at, SCALES, self.kept_with)

    def reported(self) -> JsonObject:
        figures = super().reported()
        error, *others = TITLES
        shown = others if len(set(self.targets)) > 1 else []  # of equal targets there is nothing but the error
        forms = {error: ".4g"} | dict.fromkeys(shown, ".3f")
        texts = [
            f"{TITLES[name]} {figures[name]:{form}}{intervals.between(self.intervals.get(name), form)}"
            for name, form in forms.items()
        ]
        return figures | {"text": ", ".join(texts)}

    def summary(self) -> dict[str, str]:
        return {"words": f"{100 * self.accuracy:5.1f} % right{self.between('accuracy')}"}

    def lines(self, of: str) -> Iterator[str]:
        yield f"{self.reported()['text']} for {of}"
        yield f"words {self.summary()['words'].strip()}"

    def rows(self) -> list[dict[str, object]]:
        return [
            row | {"target": target, "number": round(number, 6)}
            for row, target, number in zip(super().rows(), self.targets, self.numbers, strict=True)
        ]
