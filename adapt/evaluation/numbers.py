"""Scores of regression: the error of predicted numbers, and their correlation with the targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapt.common.plain import JsonObject
from adapt.data.item import Item
from adapt.evaluation.scores import Figure, Scores, scored
from adapt.models.prediction import finite

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
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import r2_score

        # equal numbers have no correlation: scipy returns nan and warns, but they are no better than chance
        varies = len(set(self.numbers)) > 1 and len(set(self.targets)) > 1
        figures = {
            "mean_absolute_error": -float(self.merits.mean()),
            "spearman": float(spearmanr(self.numbers, self.targets).statistic) if varies else 0.0,
            "pearson": float(pearsonr(self.numbers, self.targets).statistic) if varies else 0.0,
            "r2": float(r2_score(self.targets, self.numbers)) if len(set(self.targets)) > 1 else 0.0,
        }
        error, *others = TITLES.items()
        shown = others if len(set(self.targets)) > 1 else []  # of equal targets there is nothing but the error
        text = ", ".join(
            [f"{error[1]} {figures[error[0]]:.4g}", *(f"{title} {figures[name]:.3f}" for name, title in shown)]
        )
        return super().figures() | {"main": self.main, "main_title": self.main_title, **figures, "text": text}

    def summary(self) -> dict[str, str]:
        return {"words": f"{100 * self.accuracy:5.1f} % right"}

    def lines(self, of: str) -> Iterator[str]:
        yield f"{self.figures()['text']} for {of}"
        yield f"words {self.summary()['words'].strip()}"

    def rows(self) -> list[dict[str, object]]:
        return [
            row | {"target": target, "number": round(number, 6)}
            for row, target, number in zip(super().rows(), self.targets, self.numbers, strict=True)
        ]
