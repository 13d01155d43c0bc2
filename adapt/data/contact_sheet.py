"""A contact sheet: one picture with a few images of each class, cropped to the square that the model sees."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from adapt.common.errors import AdaptError, missing
from adapt.common.grouping import grouped
from adapt.common.progress import Progress, counted
from adapt.data.decoding.images import open_image
from adapt.data.item import Item

# pixels of an image, its smaller size, and the number of classes above which that is used
_SIDE, _SMALL_SIDE, _MANY = 96, 64, 100
_GAP, _MARGIN, _CAPTION = 2, 18, 17
_FONT_SIZE = 12
_SHAPE = 1.4  # about width over height
_PAPER, _INK, _BLANK, _MISSING = "white", "black", "#eeeeee", "#cc3333"


def contact_sheet(
    items: Sequence[Item],
    class_names: Sequence[str],
    per_class: int = 6,
    *,
    font: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """Return a picture with up to `per_class` images of each class under the class name, arranged in a grid of classes.

    The images of a class are taken at even intervals from `items`. An image that cannot be decoded is crossed out.
    `font` is a TrueType file, by default matplotlib's DejaVu Sans, which covers Latin, Greek, Cyrillic and others.
    `progress` is called with the number of drawn classes and the total number of classes.

    Raises AdaptError if there are no images to draw, if the items have no classes, or if the font cannot be used.
    """
    items = [item for item in items if item.paths]
    if items and not class_names:
        raise AdaptError(
            "a contact sheet shows images by class, but the data are pairs of images and texts without classes: give "
            "data with classes"
        )
    if not items or per_class < 1:
        raise AdaptError(f"found {len(items)} images, and per_class is {per_class}; expected at least 1 for both")
    found = grouped((name, item) for item in items for name in item.class_names)
    groups = {name: found.get(name, []) for name in class_names}
    per_class = min(per_class, max(map(len, groups.values())))
    side = _SIDE if len(class_names) <= _MANY else _SMALL_SIDE
    width, height = per_class * (side + _GAP) + _MARGIN, side + _CAPTION + _MARGIN
    columns = min(len(groups), max(1, round(math.sqrt(len(groups) * _SHAPE * height / width))))
    rows = math.ceil(len(groups) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.font = _font(font)
    for place, (name, group) in enumerate(counted(groups.items(), len(groups), progress)):
        row, column = divmod(place, columns)
        left, top = _MARGIN + column * width, _MARGIN + row * height
        caption = f"{name.replace('_', ' ')} ({len(group)})"  # as prompts read names
        pen.text((left, top), _fitted(caption, width - _MARGIN, pen), fill=_INK)
        for column in range(per_class):
            chosen = group[column * max(len(group), per_class) // per_class] if column < len(group) else None
            _draw(chosen, sheet, pen, (left + column * (side + _GAP), top + _CAPTION), side)
    return sheet


def _font(path: str | os.PathLike[str] | None) -> ImageFont.FreeTypeFont:
    """Return a font for class names, from the TrueType file `path` or, by default, matplotlib's DejaVu Sans."""
    if path is None:
        try:
            import matplotlib
        except ImportError:
            needed = missing("Drawing class names in DejaVu Sans", "matplotlib", "plot")
            raise AdaptError(f"{needed}, or give a TrueType file (--font, font=)") from None
        path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    try:
        return ImageFont.truetype(path, _FONT_SIZE)
    except OSError as error:
        raise AdaptError(f"font {os.fspath(path)!r} cannot be used: {error}. Expected a TrueType file") from error


def _fitted(text: str, width: int, pen: ImageDraw.ImageDraw) -> str:
    """Return `text`, shortened with an ellipsis if it is wider than `width` pixels."""
    if pen.textlength(text) <= width:
        return text
    length = len(text)
    while length and pen.textlength(f"{text[:length]}…") > width:
        length -= 1
    return f"{text[:length]}…"


def _draw(item: Item | None, sheet: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], side: int) -> None:
    square = (*at, at[0] + side - 1, at[1] + side - 1)
    if item is None:
        pen.rectangle(square, fill=_BLANK)
        return
    try:
        sheet.paste(ImageOps.fit(open_image(item, turned=item.turned), (side, side)), at)
    except AdaptError:
        pen.line(square, fill=_MISSING, width=2)
        pen.rectangle(square, outline=_MISSING, width=2)
