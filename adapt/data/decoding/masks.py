"""Masks of images: where an image is not as it should be, as a picture of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from adapt.data.decoding.content import open_file
from adapt.data.decoding.pictures import opened
from adapt.data.split import Item
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from torch import Tensor


def check_masks(items: Sequence[Item]) -> None:
    """AdaptError, by name, for a mask that is missing, no picture, or of another size than its image."""
    for item in items:
        if item.mask and (image := _size(item.path)) != (mask := _size(item.mask)):
            raise AdaptError(
                f"the mask {item.mask!r} is {mask[0]} x {mask[1]} pixels, and its image {item.path!r} {image[0]} x "
                f"{image[1]}: expected the same size"
            )


def _size(path: str) -> tuple[int, int]:
    """Width and height, by the header alone."""
    with open_file(path) as file, opened(file, path) as picture:
        size: tuple[int, int] = picture.size
    return size


def mask_of(item: Item, placed: Callable[[Any], Tensor]) -> Tensor:
    """What of an image is not as it should be `(h, w)`, as a model reads the image; all of it is where none is.

    `placed` brings a picture in mode L to `(h, w)`, as `Preprocess.of_mask` does. Bright is above half of the brightest
    pixel, so that masks of 0 and 1 count too. AdaptError, by name, for a file that cannot be decoded.
    """
    path = item.mask or item.path
    with open_file(path) as file, opened(file, path) as picture:
        grey = picture.convert("L")
    if not item.mask:
        return placed(grey) < 0
    _, brightest = cast(tuple[int, int], grey.getextrema())
    return placed(grey) > brightest / 2
