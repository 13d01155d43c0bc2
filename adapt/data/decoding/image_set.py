"""A torch data set of an item list's images, and loaders of batches. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

from adapt.common.errors import AdaptError
from adapt.data.bags import Bags, bag_of, has_bags
from adapt.data.decoding.images import open_image
from adapt.data.decoding.pictures import turns
from adapt.data.item import Item

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from adapt.backbones.preprocess import Transform
    from adapt.data.decoding.decoded import Loader

Pictures = Union["Tensor", tuple["Tensor", ...], list["Image"], Bags]  # `|` does not accept quoted names


class ImageSet:
    """A map-style torch data set: `dataset[i]` is the transformed image (3, h, w) of item `i`, together with `i`.

    An item with several images gives a tuple of them; if the transform leaves images as decoded, every item gives a
    list. If there are bags, every item gives `Bags`. Images are turned upright by EXIF if the transform asks for that.
    """

    def __init__(self, items: Sequence[Item], transform: Transform) -> None:
        self.items = items
        self.transform, self._turned = transform, turns(transform)
        self._as_decoded = bool(getattr(transform, "as_decoded", False))
        self._bags = has_bags(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Pictures, int]:
        """Return the transformed image of item `index`, or all of its images, and `index`.

        Raises AdaptError, naming the file, if an image cannot be decoded.
        """
        item = self.items[index]
        if self._as_decoded:
            pictures: list[Any] = [self.transform(open_image(path, turned=self._turned)) for path in item.paths]
            return pictures, index
        if len(item.paths) < 2 and not self._bags:
            return self.transform(open_image(item, turned=self._turned)), index
        images = tuple(self.transform(open_image(path, turned=self._turned)) for path in item.paths)
        return bag_of(images, item.view_names) if self._bags else images, index


def loader(
    items: Sequence[Item],
    transform: Transform,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool | None = None,
) -> Loader:
    """Return a data loader whose batches are pairs of images (b, 3, h, w) and a list of their b items.

    If items have several images each, a batch has a list of that many tensors, and if some items are bags, `Bags`. If
    the transform leaves images as decoded, it has a list of the images of each item.

    With `train`, items are shuffled, and an incomplete last batch is dropped as in the published code, except if it is
    the only batch; `drop_last` overrides this default. Order and augmentation depend only on `seed`, the epoch and the
    image (see `Loader.set_epoch`).

    Raises AdaptError if there are no items. Iterating raises AdaptError for a file that cannot be decoded.
    """
    from adapt.data.decoding.decoded import Loader
    from adapt.data.decoding.draws import Epochs

    if not items:
        raise AdaptError("there are no images to load: choose data that has images")
    if batch_size < 1:
        raise AdaptError(f"batch_size is {batch_size}; expected at least 1")
    if drop_last is None:
        drop_last = train and len(items) >= batch_size
    epochs = Epochs(len(items), batch_size, shuffle=train, seed=seed, drop_last=drop_last)
    return Loader(ImageSet(items, transform), epochs, workers)
