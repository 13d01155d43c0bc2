"""Regions of images, as paths `photo.jpg#xywh=X,Y,WIDTH,HEIGHT` in pixels from the upper left (W3C Media Fragments)."""

from __future__ import annotations

import os
import re
from math import ceil, floor

from adapt.common.errors import AdaptError
from adapt.data.decoding.pictures import RATIO

Box = tuple[int, int, int, int]  # left, upper, right and lower edge, the latter two after the last pixel
_MOST = 10**9  # pixels, of which a path has nine digits at most
_REGION = re.compile(r"(.+)#xywh=(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})", re.DOTALL)


def region(path: str, edges: tuple[float, float, float, float]) -> str:
    """Return the path of a region of the image at `path`, which is the rectangle `edges` rounded outwards to pixels.

    `edges` are left, upper, right and lower. Raises ValueError if the rectangle is empty or has negative coordinates.
    """
    left, upper, right, lower = floor(edges[0]), floor(edges[1]), ceil(edges[2]), ceil(edges[3])
    if min(left, upper) < 0 or edges[0] >= edges[2] or edges[1] >= edges[3] or max(right, lower) >= _MOST:
        raise ValueError("expected 0 <= x0 < x1 and 0 <= y0 < y1, in pixels from the upper left corner")
    return f"{path}#xywh={left},{upper},{right - left},{lower - upper}"


def parted(path: str) -> tuple[str, Box | None]:
    """Split the path of a region into the path of the image and the box; for any other path, the box is None."""
    match = _REGION.fullmatch(path)
    if match is None:
        return path, None
    left, upper, width, height = map(int, match.groups()[1:])
    return match[1], (left, upper, left + width, upper + height)


def check_form(path: str) -> None:
    """Raise AdaptError for a path that contains `#xywh=` but is neither a valid region nor an existing file."""
    image, mark, box = path.rpartition("#xywh=")
    if mark and not os.path.exists(path):
        raise AdaptError(
            f"region {path!r} has the box {box!r}; expected X,Y,WIDTH,HEIGHT, four whole numbers of pixels from the "
            f"upper left corner, such as {os.path.basename(image)}#xywh=12,40,208,140"
        )


def check_inside(box: Box, size: tuple[int, int], path: str) -> None:
    """Raise AdaptError if a region's box is empty, extends beyond the image, or is too narrow."""
    left, upper, right, lower = box
    empty = left >= right or upper >= lower
    if empty or right > size[0] or lower > size[1]:
        wrong = "has no pixel in" if empty else "is not inside"
        raise AdaptError(
            f"region {path!r} {wrong} its image, which is {size[0]} x {size[1]} pixels: the box has x from {left} to "
            f"{right} and y from {upper} to {lower}. Correct the box or remove the region from the data"
        )
    shorter, longer = sorted((right - left, lower - upper))
    if longer > RATIO * shorter:
        raise AdaptError(
            f"region {path!r} is {right - left} x {lower - upper} pixels; the longer side may be at most {RATIO} times "
            "the shorter side. Correct the box or remove the region from the data"
        )
