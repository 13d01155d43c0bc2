"""Regression: a number per image, such as a quality grade, with a word that stands for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError
from adapt.common.shown import first_of
from adapt.data.item import Cell, Item, NamedLabel, labels_of, number, optional
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method
    from adapt.models.base import Adapted

logger = logging.getLogger("adapt")
GRADES = ("bad", "poor", "fair", "good", "perfect")  # UniQA's (arXiv 2406.01069), from the lowest

LARGEST = 1e30  # target, so that single precision has room for differences


@dataclass(frozen=True)
class Graded(NamedLabel):
    """A numeric label, and a word for the number, which is "" until a word is assigned."""

    value: float

    @property
    def words(self) -> str:
        return f"{self.value:g}"


class Targets(Task):
    """The task of regression, in which each image is labelled with a number, such as a quality score."""

    name = "targets"
    title = "a number per image"
    backbones = frozenset({"dual encoder", "vision encoder"})
    example = "emoji-counts"
    items_are = "images with a number each"
    classes_are = "words"
    label_type = Graded
    _learned_as = frozenset({"classes"})
    needs = frozenset({"target"})
    takes_bags = True
    one_class = False  # the answer is a number
    may_have = frozenset({"label"})
    learns_unseen = True  # an answer may be a grade that no training image has

    def read(self, cells: Mapping[str, Cell], where: str) -> Graded:
        return Graded(optional(cells, "label"), number(cells["target"], where, "target"))

    def completed(self, labels: Sequence[Graded]) -> Sequence[Graded]:
        """Return the labels with words; if none has a word, words are set by fifths of the range of numbers."""
        without = sum(not label.name for label in labels)
        if not without:
            return labels
        if without < len(labels):
            raise AdaptError(f"{without:,} of {len(labels):,} targets have no label: give each a word, or none")
        values = [label.value for label in labels]
        low, high = min(values), max(values)
        if max(-low, high) > LARGEST:
            raise AdaptError(
                f"the targets reach from {low:g} to {high:g}; expected at most {LARGEST:g} in size: scale them"
            )
        logger.info("words are fifths of these targets, from %g to %g: %s", low, high, ", ".join(GRADES))
        width = (high - low) / len(GRADES) or 1.0

        def word(value: float) -> str:
            return GRADES[min(int((value - low) / width), len(GRADES) - 1)]

        return [replace(label, name=word(label.value)) for label in labels]

    def nothing_to_learn(self, items: Sequence[Item], class_names: Sequence[str]) -> str:
        values = {label.value for label in labels_of(items, Graded)}
        return f"only one target, {values.pop():g}: there is nothing to predict" if len(values) == 1 else ""

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        """Say so if `method` learns the words instead of the numbers."""
        if not self.compares(method):
            logger.warning(
                "%s learns the words of the targets (%s), and predicts no number: to predict numbers, use ridge",
                method.name, first_of(sorted({item.class_names[0] for item in items})),
            )  # fmt: skip

    def values(self, items: Sequence[Item]) -> Tensor:
        import torch

        return torch.tensor([label.value for label in labels_of(items, Graded)], dtype=torch.float64)

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.scores import scored

        if self.compares(model.method):
            return super().score(model, items, inference)
        return scored(items, inference.decisions(model, items), [item.class_names[0] for item in items])

    def compares(self, method: Method) -> bool:
        from adapt.methods.base.traits import Grades, has_trait

        return has_trait(method, Grades)

    def answers(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Tensor:
        """Return numbers and the probabilities of words `(n, 1 + w)`."""
        import torch

        from adapt.methods.base.traits import Grades, trait

        logits, grading = inference.all_logits(model, items).float(), trait(model.method, Grades)
        assert grading is not None
        numbers = grading.score(logits.to(model.backbone.device)).cpu()
        return torch.cat([numbers[:, None], logits.softmax(-1)], dim=1)

    def constant(self, items: Sequence[Item], class_names: Sequence[str]) -> tuple[str, Tensor]:
        """Return the mean of the numbers and the shares of the words `(1 + w,)`."""
        import torch

        return "mean", torch.cat([self.values(items).mean()[None], self.shares(items, class_names).mean(0)])

    def scores(self, items: Sequence[Item], answers: Tensor, class_names: Sequence[str]) -> Scores:
        from adapt.evaluation.numbers import GradedScores

        return GradedScores.of(items, answers, self.values(items), class_names)
