"""The images of items, by their numbers. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

from adapt.data.decoding.images import open_image
from adapt.data.split import Item

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.preprocess import Transform

# An image (3, h, w); of an item with a question: image, question and answer; of a pair: image, text and the text
# rephrased. `|` does not take names in quotes.
Inputs = Union["Tensor", tuple["Tensor", str, str]]
LabelWithTarget = int | tuple[int, float]  # the label, with the target where there is one


class ImageSet:
    """A map-style torch dataset: item `i` as its inputs and its label, with its target where it has one.

    The inputs are the transformed image, (3, h, w), or `(image, question, answer)` of an item with a question, or
    `(image, text, rephrased)` of a pair.
    """

    def __init__(self, items: Sequence[Item], transform: Transform) -> None:
        self.items = items
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Inputs, LabelWithTarget]:
        """Raises AdaptError, naming the file, when it cannot be decoded."""
        item = self.items[index]
        image = self.transform(open_image(item))
        if item.question:
            return (image, item.question, item.class_name), item.label
        answer: LabelWithTarget = item.label if item.target is None else (item.label, item.target)
        return ((image, item.text, item.rephrased) if item.text else image), answer
