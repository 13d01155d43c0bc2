"""Unlabelled images, or texts in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapt.common.errors import AdaptError
from adapt.data.item import Cell, Item, Label
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method, Step
    from adapt.models.base import Adapted


@dataclass(frozen=True)
class Unlabelled(Label):
    """The empty label of an item without annotations."""


class Images(Task):
    """The task of learning from unlabelled images, or from unlabelled texts such as captions."""

    name = "images"
    title = "no label"
    label_type: ClassVar[type[Label]] = Unlabelled
    _learned_as = frozenset()
    items_are = "images, or texts alone, without labels"
    classes_are = ""
    scored = False
    comparable = "there are no labels to compare methods by"

    def read(self, cells: Mapping[str, Cell], where: str) -> Label:
        return Unlabelled()

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        blind = [item for item in items if not item.paths]
        if blind and "images" in method.reads:
            raise AdaptError(
                f"{method.name} learns from images, but {blind[0].text!r} and others have none: give a .csv with the "
                "column path"
            )

    def check_model(self, model: Adapted, items: Sequence[Item]) -> None:
        super().check_model(model, items)
        if model.class_names or not self.learned_by(model.method):
            raise AdaptError(
                f"the data are {self.items_are}, but {model.method.name} with {len(model.class_names)} classes needs "
                "labels: give labels, or use a method that needs no labels, without class names"
            )

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the positions of the items `(n,)` as class numbers, because unlabelled items have no classes."""
        import torch

        return torch.arange(len(items))

    def right(self, step: Step) -> None:
        """Return None, because without labels no answer is correct or wrong."""

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        raise AdaptError(f"{items[0].name} and other items have no labels for scoring: give a list with labels")
