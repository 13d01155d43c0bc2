"""The images that a person is asked about: unlabelled ones of a run and other sources, and doubtful ones in lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of
from adapt.data.bags import has_bags
from adapt.data.check import all_facts, copies_of
from adapt.data.item import Item
from adapt.data.readers.csv_file import read_paths
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.lines import csv_rows
from adapt.data.split import PARTS, Split
from adapt.methods.base.traits import needs_labels
from adapt.recipe import Recipe
from adapt.training.extending import check_listable
from adapt.training.run_recipe import decodable, listed_data

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


def of_run(recipe: Recipe, progress: bool) -> Split:
    """Return the data of a run, with its unlabelled images.

    Raises AdaptError for another task than classification, for items of several images, and if images are gone.
    """
    split = listed_data(recipe, unlabelled=True)
    check_listable(split)
    if has_bags(split.items()):
        raise AdaptError(f"{split.name} has items of several images, but only single images can be labelled")
    return decodable(replace(split, unseen=not needs_labels(recipe.new_method())), recipe, progress)


def gathered(split: Split, sources: Sequence[Path], progress: bool) -> tuple[Split, dict[str, Doubt]]:
    """Return `split` with the further images in `sources` as unlabelled ones, and the doubtful images, by path.

    Raises AdaptError if there is nothing to ask about.
    """
    lists = [source for source in sources if is_of_doubts(source)]
    doubts = {path: doubt for source in lists for path, doubt in doubts_in(source, split).items()}
    new = _further([source for source in sources if source not in lists], split, progress)
    split = replace(split, unlabelled=split.unlabelled + new)
    if not (doubts or split.unlabelled):
        raise AdaptError("there are no unlabelled images: give a folder, a .csv or files with further images")
    return split, doubts


def _further(sources: Sequence[Path], split: Split, progress: bool) -> tuple[Item, ...]:
    """Return the images in `sources` that `split` does not have, without broken ones, which are logged."""
    new = unlabelled_in(sources, split)
    if not new:
        return ()
    known = [*split.items(), *split.unlabelled]
    with counting_bar("checking", progress) as bar:
        facts = all_facts([*new, *known], bar)
    if broken := [facts[item.path].problem for item in new if facts[item.path].problem]:
        logger.warning("left out %d images that cannot be read: %s", len(broken), first_of(broken, between="; "))
    whole = [item for item in new if not facts[item.path].problem]
    copies = copies_of(known, whole, facts)
    if copies:
        logger.warning("left out %d copies of images of the run, such as %r", len(copies), copies[0].path)
    left_out = set(copies)
    return tuple(item for item in whole if item not in left_out)


def present(items: Sequence[Item]) -> list[Item]:
    """Return the items whose files exist, of which archives are not looked into; a warning names one that is gone."""
    gone = {item.path for item in items if "!" not in item.path and not os.path.lexists(item.path)}
    if gone:
        logger.warning("left out %d images that are gone, such as %r", len(gone), min(gone))
    return [item for item in items if item.path not in gone]
