"""Defect masks: pictures of an image's size that are bright where the image is defective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from adapt.common.errors import AdaptError
from adapt.data.decoding.files import open_file
from adapt.data.decoding.images import image_size
from adapt.data.decoding.pictures import opened, orientation, upright
from adapt.data.item import Item

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_DARK = 127  # of 255: a mask that has no brighter pixel numbers kinds of defects
NORMAL = "normal"  # the usual name of the class of intact images


def check_masks(items: Sequence[Item], turned: bool = False) -> None:
    """Raise AdaptError, naming the mask, if a mask of `items` is missing, is not an image, or has the wrong size."""
    for item, path in [(each, path) for each in items for path in each.label.files]:
        if (image := image_size(item.path, turned)) == (mask := image_size(path, turned)):
            continue
        fits_stored = image_size(item.path, False) == mask
        raise AdaptError(
            f"the mask {path!r} is {mask[0]} x {mask[1]} pixels, but its image {item.path!r} is {image[0]} x "
            f"{image[1]}{' turned upright' if fits_stored else ''}; expected the same size. Draw the mask on the image "
            f"as it is{' shown, or set data.exif=stored' if fits_stored else ''}, or remove the mask from the data"
        )


def blank_masks(items: Sequence[Item], is_blank: Mapping[str, bool]) -> dict[str, str]:
    """Return {path: reason} for the masks of damaged images that mark no pixel, by whether a mask `is_blank`.

    Images are damaged if they are not of the class normal or, without this class, if a mask of their class marks any.
    """
    masks = [(item, path) for item in items for path in item.label.files if path in is_blank]
    classes, marked = {item.answer for item in items}, {item.answer for item, path in masks if not is_blank[path]}
    damaged = classes - {NORMAL} if NORMAL in classes else marked
    return {
        path: f"the mask {path!r} marks no pixel, but its image {item.path!r} is of the class {item.answer!r}. Mark "
        "the defect, or remove the image from the data"
        for item, path in masks
        if is_blank[path] and item.answer in damaged
    }


def marks_none(path: str, turned: bool = False) -> bool:
    """Return whether a mask is blank, that is, marks no pixel, however it is turned."""
    with open_file(path) as file, opened(file, path) as picture:
        return picture.convert("L").getbbox() is None


def mask_of(item: Item, place: Callable[[Image], Image], size: tuple[int, int], turned: bool = False) -> Tensor:
    """Return the defect mask of an item as bool `(h, w)`, true where defective, resized and cropped by `place`.

    `place` and `turned` (upright by EXIF) must be the same as for the image. For an item without a mask, all pixels are
    false. A pixel is defective if its value is above half of the mask's maximum or, in a dark mask, which numbers the
    kinds of defects as VisA's do, if its value is not 0. Raises AdaptError, naming the file, if the mask cannot be
    decoded.
    """
    import torch

    if not item.label.files:
        return torch.zeros(size, dtype=torch.bool)
    (path,) = item.label.files
    with open_file(path) as file, opened(file, path) as picture:
        grey = picture.convert("L")
        grey = upright(grey, orientation(picture)) if turned else grey
    _, brightest = cast(tuple[int, int], grey.getextrema())
    return torch.from_numpy(np.array(place(grey)) > (brightest / 2 if brightest > _DARK else 0))
