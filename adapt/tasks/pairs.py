"""Cross-modal retrieval: images with a text each, without classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapt.common.errors import AdaptError
from adapt.data.item import Cell, Item, Label, filled, labels_of, optional
from adapt.tasks.base import Task
from adapt.tasks.images import Unlabelled

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Step
    from adapt.models.base import Adapted


@dataclass(frozen=True)
class Pair(Label):
    """The label of an image-text pair, which contains a paraphrase of the text, or "" if there is no paraphrase."""

    rephrased: str = ""


class Pairs(Task):
    """The task of cross-modal retrieval with image-text pairs, in which an image may belong to several pairs."""

    name = "pairs"
    title = "pairs of images and texts"
    example = "emoji-captions"
    label_type: ClassVar[type[Label]] = Pair
    _learned_as = frozenset()
    needs = frozenset({"path", "text"})
    may_have = frozenset({"rephrased"})
    items_are = "pairs of images and texts"
    classes_are = ""
    comparable = "the methods compared need classes, and pairs have none"

    def read(self, cells: Mapping[str, Cell], where: str) -> Label:
        filled(cells, "text", where)
        # a line without an image is a text to learn from
        return Pair(optional(cells, "rephrased")) if cells["path"] else Unlabelled()

    def check_model(self, model: Adapted, items: Sequence[Item]) -> None:
        super().check_model(model, items)
        if model.class_names or not self.learned_by(model.method):
            raise AdaptError(
                f"the data are pairs of images and texts without classes, but the model is {model.method.name} with "
                f"{len(model.class_names)} classes: use a method that learns from pairs, such as lora, without class "
                "names"
            )

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return a number for each item `(n,)`, which is equal for items with the same entity or image."""
        import torch

        place: dict[str, int] = {}
        return torch.tensor([place.setdefault(item.unit or item.path, len(place)) for item in items])

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> Step:
        texts, rephrased = [item.text for item in items], [label.rephrased for label in labels_of(items, Pair)]
        return model.step([inputs, texts, rephrased]).of(self, items)

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.retrieval import retrieve
        from adapt.models.dual_encoder import AdaptedModel

        assert isinstance(model, AdaptedModel)  # as of every backbone that the task allows
        return retrieve(model, items, inference)
