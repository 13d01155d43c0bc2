"""Masks of images: where an image is not as it should be, as a picture of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from adapt.data.decoding.content import open_file
from adapt.data.decoding.pictures import opened
from adapt.data.split import Item
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from torch import Tensor


def check_masks(items: Sequence[Item]) -> None:
    """AdaptError, by name, for a mask that is missing, no picture, or of another size than its image."""
    for item in items:
        check_mask(item)


def check_mask(item: Item) -> None:
    """The same of one image, which may have none."""
    if item.mask and (image := _size(item.path)) != (mask := _size(item.mask)):
        raise AdaptError(
            f"the mask {item.mask!r} is {mask[0]} x {mask[1]} pixels, and its image {item.path!r} {image[0]} x "
            f"{image[1]}: expected the same size. Draw it on the image as it is, or take it out of the data"
        )


def _size(path: str) -> tuple[int, int]:
    """Width and height, by the header alone."""
    with open_file(path) as file, opened(file, path) as picture:
        size: tuple[int, int] = picture.size
    return size


def mask_of(item: Item, place: Callable[[Any], Any], size: tuple[int, int]) -> Tensor:
    """Which pixels of an image are not as they should be `(h, w)`, of `size` once `place` has brought it there.

    None are where there is no mask. Bright is above half of the brightest pixel, so that masks of 0 and 1 count too.
    AdaptError, by name, for a file that cannot be decoded.
    """
    import torch

    if not item.mask:
        return torch.zeros(size, dtype=torch.bool)
    with open_file(item.mask) as file, opened(file, item.mask) as picture:
        grey = picture.convert("L")
    _, brightest = cast(tuple[int, int], grey.getextrema())
    return torch.from_numpy(np.array(place(grey)) > brightest / 2)
