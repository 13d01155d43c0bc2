"""Unlabelled images, or texts in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.errors import AdaptError
from adapt.tasks.base import Cell, Label, Task

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.data.item import Item
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method
    from adapt.models.base import Adapted


@dataclass(frozen=True)
class Unlabelled(Label):
    """The empty label of an item about which nothing is known."""


class Images(Task):
    """The task of learning from images, or from texts such as captions, that have no label."""

    name = "images"
    title = "no label"
    label_type = Unlabelled
    items_are = "images, or texts alone, without labels"
    classes_are = ""
    comparable = "there are no labels to compare methods by"

    def read(self, cells: Mapping[str, Cell], where: str) -> Unlabelled:
        return Unlabelled()

    def check_model(self, model: Adapted, items: Sequence[Item]) -> None:
        super().check_model(model, items)
        if model.class_names or not self.learned_by(model.method):
            raise AdaptError(
                f"the data are {self.items_are}, and {model.method.name} has {len(model.class_names)} classes: give "
                "labels, or use a method that needs none, without class names"
            )

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return each item's position as its number `(n,)`: there are no classes, so no two items are alike."""
        import torch

        return torch.arange(len(items))

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        raise AdaptError(f"{items[0].name} and others have no labels to score answers by: give a list with labels")

    def learned_by(self, method: Method | type[Method]) -> bool:
        return self.name in method.tasks
