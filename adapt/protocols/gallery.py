"""Galleries of a report: thumbnails of the images in a run's lists, such as duplicates.csv, with their classes."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError
from adapt.common.shown import shown, unguarded
from adapt.formats.adapter import NAME
from adapt.formats.header import read_header

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL = 96  # pixels of the longer edge
MOST_PICTURES = 24  # of one list

_Row = dict[str, str]


@dataclass(frozen=True)
class Picture:
    """An image of a gallery: path, file name, caption, and thumbnail as base64 JPEG (None if the file is missing)."""

    path: str
    name: str
    caption: str
    image: str | None


@dataclass(frozen=True)
class Gallery:
    """A gallery of an image list: title, file, number of lines, and one or two pictures for each of the first lines."""

    title: str
    file: str
    lines: int
    entries: list[list[Picture]]


@dataclass(frozen=True)
class _List:
    """A kind of image list in a run directory: file, title, columns, and a function for the images of a row."""

    file: str
    title: str
    columns: tuple[str, ...]
    images: Callable[[_Row], list[tuple[str, str]]]  # the path and caption of each


_LISTS = (
    _List(
        "contradictions.csv",
        "Near duplicates with different classes",
        ("path", "class", "other_path", "other_class"),
        lambda row: [(row["path"], row["class"]), (row["other_path"], row["other_class"])],
    ),
    _List(
        "suspects.csv",
        "Training images that look like another class",
        ("path", "class", "likelier"),
        lambda row: [(row["path"], f"labelled {row['class']}, looks like {row['likelier']}")],
    ),
    _List(
        "duplicates.csv",
        "Test and validation images that look like a training image",
        ("path", "part", "class", "train_path", "train_class"),
        lambda row: [
            (row["path"], f"{row['part']}: {row['class']}"),
            (row["train_path"], f"train: {row['train_class']}"),
        ],
    ),
    _List(
        "confused.csv",
        "Images of the most often confused classes",
        ("path", "class", "predicted"),
        lambda row: [(row["path"], f"{row['class']}, classified as {row['predicted']}")],
    ),
)


def learned_turned(run: Path) -> bool:
    """Return whether the run's adapter was trained on images that were turned upright by EXIF."""
    adapter = run / NAME
    return adapter.is_file() and bool(read_header(adapter).preprocess["turned"])


def galleries(run: Path) -> Iterator[Gallery]:
    """Yield a gallery for each non-empty list of images in a run directory. Raises AdaptError if a list is damaged."""
    turned = learned_turned(run)
    for each in _LISTS:
        rows = read_rows(run / each.file, each.columns, "list of images")
        if rows:
            first = rows[: MOST_PICTURES // len(each.images(rows[0]))]
            entries = [
                [
                    Picture(path, shown(Path(path).name), caption, thumbnail(path, turned))
                    for path, caption in each.images(row)
                ]
                for row in first
            ]
            yield Gallery(each.title, each.file, len(rows), entries)


def read_rows(file: Path, columns: Collection[str], what: str) -> list[_Row]:
    """Read the rows of a run's CSV file, with formulas unescaped; return an empty list for a missing file.

    Raises AdaptError if the file is damaged or a column in `columns` is missing. `what` describes the content.
    """
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [{key: unguarded(cell) for key, cell in row.items()} for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise AdaptError(f"{file} holds no {what}: {error}") from error
    if missing := set(columns).difference(reader.fieldnames or ()):
        raise AdaptError(f"{file} holds no {what}: the column {min(missing)} is missing")
    return rows


def small_image(path: str, turned: bool) -> Image.Image | None:
    """Return an image at thumbnail size, rotated upright by EXIF if `turned`; None if the file cannot be read."""
    from adapt.data.decoding.images import open_image

    try:
        image = open_image(path, turned=turned)
    except AdaptError:
        return None  # moved since the run; the page says so
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def thumbnail(path: str, turned: bool) -> str | None:
    """Return the thumbnail of an image as base64 JPEG, or None if the file cannot be read."""
    image = small_image(path, turned)
    if image is None:
        return None
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode("ascii")
