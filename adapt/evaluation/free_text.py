"""Scores of answers in words (exact and normalised match, token F1, ANLS, numbers within a tolerance), and of pairs.

Sources: token F1 and normalisation as in SQuAD (Rajpurkar et al., EMNLP 2016), ANLS as in ST-VQA (Biten et al., ICCV
2019), numbers within 5 % as ChartQA's relaxed accuracy (Masry et al., Findings of ACL 2022). With one right answer for
each question, VQA accuracy is the normalised match. SQuAD's normalisation makes 15 of 1.5, and nothing of the answer A:
here, numbers keep what stands in them or before them, and an answer of articles alone its articles.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from adapt.common.plain import JsonObject
from adapt.evaluation import intervals
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import QuestionScores, scored

if TYPE_CHECKING:
    from adapt.data.item import Item


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_IN_NUMBERS = r"(?<=\d)(?:[.:/]|,(?!\d{3}\b))(?=\d)|-(?=\$?\.?\d)|(?<![\w.])\.(?=\d)"  # but commas of thousands
_MARKS = re.compile(f"({_IN_NUMBERS})|[{re.escape(string.punctuation)}]")
LEAST_SIMILARITY = 0.5  # below it, ANLS counts an answer as wrong
TOLERANCE = 0.05  # of numbers, relative


def normalised(answer: str) -> str:
    """Return an answer in lower case, without articles, repeated spaces, and punctuation but that of numbers."""
    plain = _MARKS.sub(r"\1", answer.lower().replace("\N{MINUS SIGN}", "-"))
    return " ".join(_ARTICLES.sub(" ", plain).split() or plain.split())


def token_f1(predicted: str, actual: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, after normalisation."""
    ours, theirs = normalised(predicted).split(), normalised(actual).split()
    if not (ours and theirs):
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def similarity(predicted: str, actual: str) -> float:
    """Return one minus the edit distance over the longer length, ignoring case; 0 if it is below a half (ANLS)."""
    one, other = predicted.strip().lower(), actual.strip().lower()
    longer = max(len(one), len(other))
    value = 1 - _distance(one, other) / longer if longer else 1.0
    return value if value >= LEAST_SIMILARITY else 0.0


def relaxed(predicted: str, actual: str) -> bool:
    """Return whether two numbers differ by at most 5 % of the right one, or two texts match after normalisation."""
    try:
        number, right = (float(each.strip().rstrip("%.").replace(",", "")) for each in (predicted, actual))
    except ValueError:
        return normalised(predicted) == normalised(actual)
    return abs(number - right) <= TOLERANCE * abs(right)


def _distance(one: str, other: str) -> int:
    """Return the number of inserted, deleted and replaced characters between two texts (Levenshtein)."""
    row = list(range(len(other) + 1))
    for count, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], count
        for place, own in enumerate(other, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != own))
    return row[-1]


@dataclass(frozen=True)
class WordScores(QuestionScores):
    """Scores of answers in words; an answer is right if it matches after normalisation."""

    main_title = "answers right"
    has_classes = False

    @property
    def right(self) -> tuple[bool, ...]:
        pairs = zip(self.predicted, self.actual, strict=True)
        return tuple(normalised(one) == normalised(other) for one, other in pairs)

    @cached_property
    def _values(self) -> dict[str, list[float]]:
        """The values of all questions whose means are figures, by the name of the figure."""
        pairs = list(zip(self.predicted, self.actual, strict=True))
        measures = {
            "exact_match": str.__eq__, "token_f1": token_f1, "anls": similarity, "relaxed_accuracy": relaxed,
        }  # fmt: skip
        return {name: [float(measure(*pair)) for pair in pairs] for name, measure in measures.items()}

    def figures(self) -> JsonObject:
        means = {name: sum(values) / self.images for name, values in self._values.items()}
        return super().figures() | means

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        found = {name: intervals.of_mean(torch.tensor(values), self.kept_with) for name, values in self._values.items()}
        return super().intervals | {name: each.within(0, 1) for name, each in found.items() if each}

    def details(self) -> dict[str, object]:
        return {"by_question": self.by_question} | super().details()

    @property
    def by_question(self) -> dict[str, float]:
        """The share of right answers to each question that was asked more than once, in [0, 1]."""
        asked = Counter(self.questions)
        right = Counter(question for question, hit in zip(self.questions, self.right, strict=True) if hit)
        return {question: right[question] / count for question, count in sorted(asked.items()) if count > 1}

    def summary(self) -> dict[str, str]:
        return {name: self.share(name) for name in ("exact_match", "token_f1", "anls")}

    def lines(self, of: str) -> Iterator[str]:
        right = f"{self.share('accuracy')} of {of} answered right"
        yield f"{right}, {self.share('token_f1', 'token F1')}, {self.share('anls', 'ANLS')}"


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
        return super().figures() | {"margin": self.margin}

    def summary(self) -> dict[str, str]:
        return {"margin": f"{self.margin:7.2f}  (log-probability of the chosen answer minus the rejected)"}

    def lines(self, of: str) -> Iterator[str]:
        yield f"{self.share('accuracy')} of {of} in order, mean margin {self.margin:.2f}"

    def rows(self) -> list[dict[str, object]]:
        return [row | {"margin": round(margin, 6)} for row, margin in zip(super().rows(), self.margins, strict=True)]


def scored_pairs(items: Sequence[Item], batches: Iterable[Sequence[tuple[float, float]]]) -> PairScores:
    """Return the scores of pairs from batches of the log-probabilities of the chosen and the rejected answers."""
    sums = [pair for batch in batches for pair in batch]
    margins = [chosen - rejected for chosen, rejected in sums]
    chosen = [item.answer if margin > 0 else item.label.columns["rejected"] for item, margin in zip(items, margins)]
    confidence = [1 / (1 + math.exp(-min(abs(margin), 700.0))) for margin in margins]
    questions = tuple(item.label.columns["question"] for item in items)
    return PairScores(**vars(scored(items, [(chosen, confidence)])), questions=questions, margins=tuple(margins))
