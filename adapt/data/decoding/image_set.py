"""The images of items, by their numbers. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

from adapt.data.decoding.images import open_image
from adapt.data.decoding.orientation import turns
from adapt.data.item import Item

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.preprocess import Transform

Pictures = Union["Tensor", tuple["Tensor", ...]]  # `|` does not take names in quotes


class ImageSet:
    """A map-style torch dataset: item `i` as its transformed image (3, h, w), or as many of them, and its number.

    Images are turned upright where the transform says so.
    """

    def __init__(self, items: Sequence[Item], transform: Transform) -> None:
        self.items = items
        self.transform, self._turned = transform, turns(transform)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Pictures, int]:
        """Raises AdaptError, naming the file, when it cannot be decoded."""
        item = self.items[index]
        if len(item.paths) < 2:
            return self.transform(open_image(item, turned=self._turned)), index
        return tuple(self.transform(open_image(path, turned=self._turned)) for path in item.paths), index
