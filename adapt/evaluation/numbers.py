"""Scores of regression: correlation of predicted numbers with their targets, and their error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapt.common.plain import JsonObject
from adapt.evaluation.scores import Scores

TITLES = {"spearman": "Spearman", "pearson": "Pearson", "mean_absolute_error": "mean absolute error"}


@dataclass(frozen=True)
class GradedScores(Scores):
    """Regression scores: true numbers `targets` and predicted `numbers`, added to scores of words such as good."""

    targets: tuple[float, ...] = ()
    numbers: tuple[float, ...] = ()

    @classmethod
    def of(cls, scores: Scores, targets: Tensor, predicted: Sequence[Tensor]) -> GradedScores:
        """Return `scores` of words, extended by the true numbers `(n,)` and by batches of predicted numbers."""
        numbers = tuple(number for batch in predicted for number in batch.tolist())
        return cls(**vars(scores), targets=tuple(targets.tolist()), numbers=numbers)

    def figures(self) -> JsonObject:
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import mean_absolute_error

        # equal numbers have no correlation: scipy returns nan and warns, but they are no better than chance
        varies = len(set(self.numbers)) > 1 and len(set(self.targets)) > 1
        return super().figures() | {
            "pearson": float(pearsonr(self.numbers, self.targets).statistic) if varies else 0.0,
            "spearman": float(spearmanr(self.numbers, self.targets).statistic) if varies else 0.0,
            "mean_absolute_error": float(mean_absolute_error(self.targets, self.numbers)),
        }

    def summary(self) -> dict[str, str]:
        figures = self.figures()
        numbers = ", ".join(f"{title} {figures[name]:.3f}" for name, title in TITLES.items())
        return super().summary() | {"numbers": numbers}

    def lines(self, of: str) -> Iterator[str]:
        yield from super().lines(of)
        yield self.summary()["numbers"]

    def rows(self) -> list[dict[str, object]]:
        return [
            row | {"target": target, "number": round(number, 6)}
            for row, target, number in zip(super().rows(), self.targets, self.numbers, strict=True)
        ]
