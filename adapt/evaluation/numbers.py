"""Numbers beside what they should be: how well they are ordered, and how far off they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapt.evaluation.scores import Scores, beside_accuracy


@dataclass(frozen=True)
class GradedScores(Scores):
    """Scores of the images' words, with the `targets` and what was said in their place, in the images' order."""

    targets: tuple[float, ...] = ()
    said: tuple[float, ...] = ()

    @classmethod
    def of(cls, scores: Scores, targets: Tensor, said: Sequence[Tensor]) -> GradedScores:
        """`scores` of items with these targets `(n,)`, and batches of the numbers that were said of them."""
        return cls(**vars(scores), targets=tuple(targets.tolist()), said=tuple(torch.cat([*said]).tolist()))

    def figures(self) -> dict[str, Any]:
        ours, right = (torch.tensor(each, dtype=torch.double) for each in (self.said, self.targets))
        return super().figures() | {
            "pearson": pearson(ours, right),
            "spearman": pearson(ranks(ours), ranks(right)),
            "mean_absolute_error": float((ours - right).abs().mean()),
        }

    def lines(self, of: str) -> Iterator[str]:
        yield from super().lines(of)
        yield beside_accuracy(self.figures()) or ""

    def rows(self) -> list[dict[str, Any]]:
        return [
            row | {"target": target, "said": round(said, 6)}
            for row, target, said in zip(super().rows(), self.targets, self.said, strict=True)
        ]


def pearson(one: Tensor, other: Tensor) -> float:
    """Of two `(n,)`; 0 where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    norm = float(one.norm() * other.norm())
    return float(one @ other) / norm if norm else 0.0


def ranks(values: Tensor) -> Tensor:
    """Each one's place `(n,)` among `values`, equal ones sharing the mean of theirs."""
    _, where, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    mean: Tensor = (last - (counts - 1) / 2)[where]
    return mean.double()
