"""The images that a person is asked about: unlabelled ones, or those in a list of doubtful ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.data.readers.csv_file import read_paths
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.lines import csv_rows
from adapt.data.split import PARTS, Split

logger = logging.getLogger("adapt")
COMPARED = ("train_path", "other_path")  # columns of an image to compare a listed image with
_SHOWN = ("path", "class", "part", "other_class", "train_class", "other_part")  # columns that are shown otherwise


@dataclass(frozen=True)
class Proposal:
    """An image and the label that it may have: the proposed one, or the present one of a labelled image.

    `likely` are the likeliest classes with their probabilities, the likeliest first. `why` says why a listed image is
    doubtful, and `other` is the path of an image that it should be compared with, or "".
    """

    item: Item
    label: str
    likely: tuple[tuple[str, float], ...]
    why: str = ""
    other: str = ""

    @property
    def reviewed(self) -> bool:
        """Whether the image has a label already, which is to be kept, changed or dropped."""
        return bool(self.item.class_names)


@dataclass(frozen=True)
class Doubt:
    """Why an image is in a list of doubtful ones, and the path of an image to compare it with, or ""."""

    why: str
    other: str = ""


def is_of_doubts(source: Path) -> bool:
    """Return whether a file is a list of doubtful images, which `recommend` or `data check` wrote."""
    return source.is_file() and source.suffix.lower() == ".csv" and {"path", "class"} <= set(csv_rows(source)[0])


def doubts_in(source: Path, split: Split) -> dict[str, Doubt]:
    """Return the images of `split` that a list of doubtful images names, by path, in the list's order.

    Of images that contradict each other, both are doubtful. A warning says how many lines name no image of `split`.
    """
    part_of = {item.path: part for part in PARTS for item in getattr(split, part)}
    columns, rows = csv_rows(source)
    doubts: dict[str, Doubt] = {}
    for row in rows:
        if row["path"] in part_of:
            doubts[row["path"]] = _doubt(row, part_of[row["path"]])
        other = row.get("other_path", "")
        if "other_class" in columns and row["other_class"] != row["class"] and other in part_of:
            doubts.setdefault(other, Doubt(f"{part_of[other]} image; the other picture: {row['class']}", row["path"]))
    if unknown := sum(row["path"] not in part_of for row in rows):
        logger.warning("%s: %d of %d lines name no image of the run", source, unknown, len(rows))
    return doubts


def _doubt(row: Mapping[str, str], part: str) -> Doubt:
    other = next((column for column in COMPARED if row.get(column)), "")
    notes = [f"{part} image"]
    notes += [f"{name} {cell}" for name, cell in row.items() if cell and name not in (*_SHOWN, *COMPARED)]
    if other:
        other_class = row.get("train_class") or row.get("other_class", "")
        notes.append(f"the other picture: {row.get('other_part') or 'train'}, {other_class}")
    return Doubt("; ".join(notes), row[other] if other else "")


def unlabelled_in(sources: Sequence[Path], known: Split) -> list[Item]:
    """Return the images in folders, lists and files as unlabelled items, without those that `known` contains by path.

    Raises AdaptError for a source without images.
    """
    paths = [path for source in sources for path in _images_in(source)]
    listed = {item.path for item in (*known.items(), *known.unlabelled)}
    new = dict.fromkeys(path for path in paths if path not in listed and _is_text(path))
    if nameless := sum(not _is_text(path) for path in paths):
        logger.warning("left out %d images whose names are not UTF-8: rename them", nameless)
    return [Item.of(path=path, turned=known.turned) for path in new]


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _images_in(source: Path) -> list[str]:
    if source.suffix.lower() == ".csv" and source.is_file():
        return [path for path, _, _ in read_paths(source)]
    if not source.is_dir():
        if not source.is_file():
            why = "; `recommend` and `data check` write a list only if they find something" * (source.suffix == ".csv")
            raise AdaptError(f"{source} does not exist; expected a folder of images, a .csv or an image{why}")
        return [str(source.absolute())]
    paths = images_in(str(source.absolute()))
    if not paths:
        raise AdaptError(f"the folder {source} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
    return paths
