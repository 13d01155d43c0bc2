"""The images of items, by their numbers. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

from adapt.data.decoding.images import open_image
from adapt.data.decoding.orientation import turns
from adapt.data.split import Item

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.preprocess import Transform

# An image (3, h, w); of an item with a question: image, question and answer; of a pair: image, text and the text
# rephrased. `|` does not take names in quotes.
Inputs = Union["Tensor", tuple["Tensor", str, str]]
# the label, with the target or overlap where there is one; of each class whether it is seen, where several may be
Truth = int | tuple[int, float] | tuple[bool, ...]


class ImageSet:
    """A map-style torch dataset: item `i` as its inputs and its label, with its target or overlap where it has one.

    Where images may have several of as many `classes` (by default of those that some have), the label is whether it has
    each. Images are turned upright where the transform says so. The inputs are the transformed image, (3, h, w), or
    `(image, question, answer)` of an item with a question, or `(image, text, rephrased)` of a pair.
    """

    def __init__(self, items: Sequence[Item], transform: Transform, classes: int | None = None) -> None:
        self.items = items
        self.classes = classes or 1 + max((label for item in items for label in item.every_label), default=0)
        self.transform, self._turned = transform, turns(transform)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Inputs, Truth]:
        """Raises AdaptError, naming the file, when it cannot be decoded."""
        item = self.items[index]
        image = self.transform(open_image(item, turned=self._turned))
        if item.question:
            return (image, item.question, item.class_name), item.label
        answer: Truth = item.label if item.number is None else (item.label, item.number)
        if item.labels is not None:
            answer = tuple(label in item.labels for label in range(self.classes))
        return ((image, item.text, item.rephrased) if item.text else image), answer
