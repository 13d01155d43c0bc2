"""Batches of images and labels, the same for a seed whatever the number of workers.

This module does not import torch, so that `adapt.data` can import it at once (see there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Union

from adapt.data.images import open_image
from adapt.data.split import Item
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from adapt.data.batches import Batches

Transform = Callable[["Image"], "Tensor"]
# An image (3, h, w); of an item with a question: image, question and answer. `|` does not take names in quotes.
Inputs = Union["Tensor", tuple["Tensor", str, str]]


class ImageSet:
    """A map-style torch dataset: item `i` as its inputs and its label.

    The inputs are the transformed image, (3, h, w), or `(image, question, answer)` of an item with a question.
    """

    def __init__(self, items: Sequence[Item], transform: Transform) -> None:
        self.items = items
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        """Raises AdaptError, naming the file, when it cannot be decoded."""
        item = self.items[index]
        image = self.transform(open_image(item))
        return ((image, item.question, item.class_name) if item.question else image), item.label


def loader(
    items: Sequence[Item],
    transform: Transform,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool | None = None,
) -> Batches:
    """Batches of `items` as images (b, 3, h, w) and labels (b,), for training or in order.

    Of items with questions: `[images, questions, answers]`, the latter lists of b texts, and labels.

    For training, as in the published code: shuffled, and the last short batch is dropped if there is a full one (or by
    `drop_last`). Order and augmentation depend on `seed`, the epoch and the image only; see `Batches.set_epoch`.

    Raises AdaptError when there is nothing to load; iterating raises it for a file that cannot be decoded.
    """
    from adapt.data.batches import Batches
    from adapt.data.epochs import Epochs

    if not items:
        raise AdaptError("There are no images to load: the part of the data that was asked for is empty.")
    if batch_size < 1:
        raise AdaptError(f"batch_size is {batch_size}; expected at least 1.")
    if drop_last is None:
        drop_last = train and len(items) >= batch_size
    epochs = Epochs(len(items), batch_size, shuffle=train, seed=seed, drop_last=drop_last)
    return Batches(ImageSet(items, transform), epochs, workers)
