"""Making a split from listed images: class numbers, and a division into parts if the list does not give it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from adapt import tasks
from adapt.data.decoding.regions import parted
from adapt.data.item import Item
from adapt.data.readers import parts
from adapt.data.split import Split
from adapt.errors import AdaptError
from adapt.tasks import SEPARATOR, Task

logger = logging.getLogger("adapt")
_SEVERAL = " (a column 'labels' in place of 'label' may have several classes of an image)"


class Listed(NamedTuple):
    """An item with its part of the split (train, val, test); the part is "" if the data set does not give it."""

    item: Item
    part: str = ""


def listed(path: str, cells: Mapping[str, Any], part: str = "", domain: str = "") -> Listed:
    """Return an item from `cells`, its values by column name, such as label, and its part: train, val or test."""
    return Listed(Item.of(path=path, domain=domain, **cells), part)


def to_split(
    name: str,
    root: str,
    rows: Sequence[Listed],
    class_names: Sequence[str] | None,
    ratios: Sequence[float],
    seed: int,
    turned: bool = True,
) -> Split:
    """Return the split of `rows`; images are turned upright by EXIF if `turned`.

    Without `class_names`, classes are taken from the rows. Rows without a part are divided by `ratios` and `seed`. If
    some of them are texts, the texts are for training and the images for the test. Raises AdaptError if a class has no
    training image.
    """
    rows, task = _completed(rows, name), tasks.of([row.item for row in rows])
    items = [row.item for row in rows]
    shares: Sequence[float] | None = None
    if any(row.part for row in rows) or not (task.mixes_texts or all(item.paths for item in items)):
        part_of = [row.part or ("test" if row.item.paths else "train") for row in rows]
    else:
        part_of, shares = _assigned(items, task, ratios, seed), ratios
    divided: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for item, part in zip(items, part_of, strict=True):
        divided[part].append(replace(item, turned=turned and bool(item.paths)))
    names = task.class_names(item.label for item in items) if class_names is None else tuple(class_names)
    train, val, test = map(tuple, divided.values())
    return Split(name, names, train, val, test, root=root, ratios=None if shares is None else tuple(shares))


def _completed(rows: Sequence[Listed], name: str) -> list[Listed]:
    """Return the rows with complete labels: some tasks make a label from the labels of all items."""
    try:
        labels = tasks.of([row.item for row in rows]).completed([row.item.label for row in rows])
    except AdaptError as error:
        raise AdaptError(f"data {name!r}: {error}") from None
    return [row._replace(item=row.item.labelled(label)) for row, label in zip(rows, labels, strict=True)]


def _assigned(items: Sequence[Item], task: Task, ratios: Sequence[float], seed: int) -> list[str]:
    """Return the part (train, val, test) of each item, drawn by `ratios` and `seed`, and balanced by class.

    Regions of one image share a part, and so do items of one entity. The part is then drawn by the rarest of their
    classes. Questions about one image need not share a part.
    """
    if not (task.stays_whole or any(parted(item.path)[1] for item in items)):
        return parts.assign([item.stratum for item in items], ratios, seed)
    units = [item.unit or parted(item.path)[0] for item in items]
    count = Counter(item.stratum for item in items)
    rarest: dict[str, str] = {}
    for item, unit in zip(items, units, strict=True):
        rarest[unit] = min(rarest.get(unit, item.stratum), item.stratum, key=lambda name: (count[name], name))
    part_of = dict(zip(rarest, parts.assign(list(rarest.values()), ratios, seed), strict=True))
    return [part_of[unit] for unit in units]


def check_listed_once(rows: Sequence[Listed], where: str) -> None:
    """Raise AdaptError for an image listed in two parts (train, val, test), classes or entities, if not allowed."""
    seen: dict[tuple[str, str], str] = {}
    for item, part in rows:
        if not (item.paths and item.task.once_an_image):
            continue
        for what, path, other in (
            ("parts", parted(item.path)[0], part),
            ("classes", item.path, SEPARATOR.join(item.class_names)),
            ("entities", parted(item.path)[0], item.unit),
        ):
            one = seen.setdefault((what, path), other)
            if one != other:
                raise AdaptError(
                    f"{where}: {path!r} is of two {what}, {one!r} and {other!r}. Keep one of the lines"
                    + _SEVERAL * (what == "classes")
                )


def one_each(rows: Sequence[Listed], root: str, real: Mapping[str, str], where: str) -> list[Listed]:
    """Return `rows` without those whose path is a symbolic link to an image that another row lists.

    Paths are below `root`; `real` maps each path to its path without links. Of several rows of one image, the row
    without a link stays, or else the first one. If a row with another part or class is left out, a warning is logged.
    Raises AdaptError if only links put an image into two parts or classes, as neither is the right one.
    """
    home = os.path.realpath(root)
    own = {row.item.path for row in rows if real[row.item.path] == home + row.item.path.removeprefix(root)}
    first_of: dict[str, Listed] = {}  # by real path
    lost: list[tuple[Listed, Listed]] = []
    for row in sorted(rows, key=lambda row: row.item.path not in own):  # stable
        first = first_of.setdefault(real[row.item.path], row)
        if first.item.path != row.item.path and _counts_as(first) != _counts_as(row):
            if first.item.path not in own:
                raise AdaptError(f"{where}: {_pair(row, first)}, by symbolic links. Keep one of the links")
            lost.append((row, first))
    if lost:
        links = f"{len(lost):,} links of pictures that count elsewhere, such as {_pair(*lost[0])}"
        logger.warning("%s: left out %s.", where, links)
    return [row for row in rows if first_of[real[row.item.path]].item.path == row.item.path]


def _counts_as(row: Listed) -> tuple[str, str, str]:
    return row.part, SEPARATOR.join(row.item.class_names), row.item.unit


def _pair(row: Listed, other: Listed) -> str:
    place, other_place = (f"{each.part} {SEPARATOR.join(each.item.class_names)}".strip() for each in (row, other))
    return f"{row.item.path!r} ({place}) is the same picture as {other.item.path!r} ({other_place})"


def check_linked(items: Mapping[str, Sequence[Item]], where: str) -> None:
    """Raise AdaptError if symbolic links list one image in two parts; the same path may occur in two parts."""
    real = real_paths(item.path for listed in items.values() for item in listed)
    seen: dict[str, tuple[str, str]] = {}
    for part, listed in items.items():
        for item in listed:
            first, path = seen.setdefault(real[item.path], (part, item.path))
            if first != part and path != item.path:
                raise AdaptError(
                    f"{where}: {item.path!r} ({part}) is the same picture as {path!r} ({first}), by symbolic "
                    "links. Keep one of them"
                )


def real_paths(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: path without symbolic links} for all `paths`."""
    folders: dict[str, str] = {}
    real: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        joined = os.path.join(folders[folder], name)
        real[path] = os.path.realpath(joined) if os.path.islink(joined) else joined
    return real
