"""Scores of preferences: how often, and by how much, a model finds the chosen answer more probable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.common.plain import JsonObject
from adapt.evaluation.scores import QuestionScores

if TYPE_CHECKING:
    from adapt.data.item import Item


@dataclass(frozen=True)
class PairScores(QuestionScores):
    """Scores of pairs of answers. The predicted answer is the more probable one."""

    main_title = "pairs in order"
    has_classes = False
    margins: tuple[float, ...] = ()
    """The log-probability of the chosen answer minus that of the rejected one, sums over their tokens."""

    @property
    def margin(self) -> float:
        """The mean margin."""
        return sum(self.margins) / self.images

    def figures(self) -> JsonObject:
        return super().figures() | {"main_title": self.main_title, "margin": self.margin}

    def summary(self) -> dict[str, str]:
        return {"margin": f"{self.margin:7.2f}  (log-probability of the chosen answer minus the rejected)"}

    def lines(self, of: str) -> Iterator[str]:
        yield f"{100 * self.accuracy:.1f} % of {of} in order, mean margin {self.margin:.2f}"

    def rows(self) -> list[dict[str, object]]:
        return [row | {"margin": round(margin, 6)} for row, margin in zip(super().rows(), self.margins, strict=True)]


def scored_pairs(items: Sequence[Item], batches: Iterable[Sequence[tuple[float, float]]]) -> PairScores:
    """Return the scores of pairs from batches of the log-probabilities of the chosen and the rejected answers."""
    sums = [pair for batch in batches for pair in batch]
    margins = [chosen - rejected for chosen, rejected in sums]
    return PairScores(
        paths=tuple(item.name for item in items),
        actual=tuple(item.answer for item in items),
        predicted=tuple(
            item.answer if margin > 0 else item.label.columns["rejected"] for item, margin in zip(items, margins)
        ),
        confidence=tuple(1 / (1 + math.exp(-min(abs(margin), 700.0))) for margin in margins),
        questions=tuple(item.label.columns["question"] for item in items),
        margins=tuple(margins),
    )
