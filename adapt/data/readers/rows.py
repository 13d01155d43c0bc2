"""From listed images to a split: numbers for the classes, and parts where the list does not say them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from adapt.data.decoding.regions import parted
from adapt.data.readers import parts
from adapt.data.split import SEPARATOR, Item, Split
from adapt.errors import AdaptError

logger = logging.getLogger("adapt")
_SEVERAL = " (A column 'labels' in place of 'label' may have several classes of an image.)"


class Listed(NamedTuple):
    """An image before its class has a number; `part` is "" where the data set does not say it."""

    path: str
    class_name: str
    part: str = ""
    domain: str = ""
    question: str = ""
    group: str = ""
    text: str = ""
    target: float | None = None
    class_names: tuple[str, ...] | None = None  # of an image that may have several
    mask: str = ""
    rephrased: str = ""
    entity: str = ""  # that a pair is of
    overlap: float | None = None

    @property
    def classes(self) -> str:
        """The name of its class, or those of all."""
        return self.class_name if self.class_names is None else SEPARATOR.join(sorted(self.class_names))

    @property
    def of_item(self) -> dict[str, Any]:
        """What its item has from it as it is."""
        own = ("path", "class_name", "domain", "question", "group", "text", "target", "mask", "rephrased", "entity")
        return {name: getattr(self, name) for name in (*own, "overlap")}


def to_split(
    name: str,
    root: str,
    rows: Sequence[Listed],
    class_names: Sequence[str],
    ratios: Sequence[float],
    seed: int,
    turned: bool = True,
) -> Split:
    """The split of `rows`, with labels by the order of `class_names`, of images that are `turned` upright by EXIF.

    Rows without a part are divided by `ratios` and `seed`; where some are texts, these are for training and the images
    for the test. Raises AdaptError when a class has no training image.
    """
    label = {class_name: number for number, class_name in enumerate(class_names)}
    undivided = not any(row.part for row in rows)
    if not class_names:
        return _of_pairs(name, root, rows, ratios if undivided else None, seed, turned)
    shares: Sequence[float] | None = None
    if not undivided:
        part_of = [row.part for row in rows]
    elif all(row.path for row in rows):
        part_of, shares = _assigned(rows, ratios, seed), ratios
    else:
        part_of = ["test" if row.path else "train" for row in rows]
    items: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for row, part in zip(rows, part_of, strict=True):
        labels = None if row.class_names is None else tuple(sorted(label[each] for each in row.class_names))
        number, upright = label.get(row.class_name, -1), turned and bool(row.path)
        items[part].append(Item(label=number, labels=labels, turned=upright, **row.of_item))
    return _split(name, root, class_names, items, shares)


def _split(
    name: str, root: str, class_names: Sequence[str], items: Mapping[str, list[Item]], ratios: Sequence[float] | None
) -> Split:
    shares = None if ratios is None else tuple(ratios)
    train, val, test = (tuple(items[part]) for part in ("train", "val", "test"))
    return Split(name, tuple(class_names), train, val, test, root=root, ratios=shares)


def _assigned(rows: Sequence[Listed], ratios: Sequence[float], seed: int) -> list[str]:
    """The part of each row; regions of one image share its part. Several questions about one image need not."""
    if not any(parted(row.path)[1] for row in rows):
        return parts.assign([row.class_name for row in rows], ratios, seed)
    return _assigned_by_image(rows, ratios, seed)


def _assigned_by_image(rows: Sequence[Listed], ratios: Sequence[float], seed: int) -> list[str]:
    """The same where all of an image, or of an entity, shares its part, which is drawn by the rarest of its classes."""
    wholes = [row.entity or parted(row.path)[0] for row in rows]
    count = Counter(row.class_name for row in rows)
    rarest: dict[str, str] = {}
    for row, whole in zip(rows, wholes, strict=True):
        rarest[whole] = min(rarest.get(whole, row.class_name), row.class_name, key=lambda name: (count[name], name))
    part_of = dict(zip(rarest, parts.assign(list(rarest.values()), ratios, seed), strict=True))
    return [part_of[whole] for whole in wholes]


def by_rarest(rows: Sequence[Listed]) -> list[Listed]:
    """Rows of several classes each, under the name of the rarest of theirs, so that parts have some of every class."""
    images = Counter(name for row in rows for name in row.class_names or ())
    return [
        row._replace(class_name=min(row.class_names or ("",), key=lambda name: (images[name], name))) for row in rows
    ]


def _of_pairs(
    name: str, root: str, rows: Sequence[Listed], ratios: Sequence[float] | None, seed: int, turned: bool
) -> Split:
    """The split of pairs and of texts alone; with `ratios` pairs are divided, all those of an image, or of an entity,
    into one part."""
    keys = [(bool(row.entity), row.entity or row.path or row.text) for row in rows]
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    part_of = [row.part or ("test" if row.path else "train") for row in rows]
    divided = ratios is not None and all(row.path for row in rows)
    if ratios is not None and divided:
        part_of = _assigned_by_image(rows, ratios, seed)
    items: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for key, part, row in zip(keys, part_of, rows, strict=True):
        items[part].append(Item(label=number[key], turned=turned and bool(row.path), **row.of_item))
    return _split(name, root, (), items, ratios if divided else None)


def check_listed_once(rows: Sequence[Listed], where: str) -> None:
    """AdaptError for a picture that is listed for two parts, or two classes; several questions may be about one."""
    listed: dict[tuple[str, str], str] = {}
    for row in filter(attrgetter("path"), rows):
        of_whole = "parts", parted(row.path)[0], row.part
        for what, path, other in (
            of_whole,
            ("classes", row.path, row.classes),
            ("entities", parted(row.path)[0], row.entity),
        ):
            one = listed.setdefault((what, path), other)
            if one != other and not row.question:
                raise AdaptError(
                    f"{where}: {path!r} is of two {what}, {one!r} and {other!r}. Keep one of the lines."
                    + _SEVERAL * (what == "classes")
                )


def one_each(rows: Sequence[Listed], root: str, real: Mapping[str, str], where: str) -> list[Listed]:
    """`rows` without those that come by a symbolic link to a picture that another path has.

    Paths are below `root`; `real` has each path's real one. The path without a link stays, or else the first one; what
    another part or class loses by it is logged. Raises AdaptError where links alone put one picture into two parts or
    classes: neither is the right one.
    """
    home = os.path.realpath(root)
    own = {row.path for row in rows if real[row.path] == home + row.path.removeprefix(root)}
    kept: dict[str, Listed] = {}  # by real path
    lost: list[tuple[Listed, Listed]] = []
    for row in sorted(rows, key=lambda row: row.path not in own):  # stable
        first = kept.setdefault(real[row.path], row)
        if first.path != row.path and _counts_as(first) != _counts_as(row):
            _check_own(first, row, own, where)
            lost.append((row, first))
    if lost:
        logger.warning(
            "%s: left out %s of pictures that count elsewhere, such as %s.",
            where,
            f"{len(lost):,} links",
            _pair(*lost[0]),
        )
    return [row for row in rows if kept[real[row.path]].path == row.path]


def _counts_as(row: Listed) -> tuple[str, str, str]:
    return row.part, row.classes, row.entity


def _check_own(first: Listed, row: Listed, own: set[str], where: str) -> None:
    if first.path not in own:
        raise AdaptError(f"{where}: {_pair(row, first)} by symbolic links. Keep one of them.")


def _pair(row: Listed, other: Listed) -> str:
    place, other_place = (f"{each.part} {each.classes}".strip() for each in (row, other))
    return f"{row.path!r} ({place}) is the same picture as {other.path!r} ({other_place})"


def check_linked(items: Mapping[str, Sequence[Item]], where: str) -> None:
    """Raises AdaptError where symbolic links list one picture in two parts. One path that stands twice may."""
    real = real_paths(item.path for listed in items.values() for item in listed)
    seen: dict[str, tuple[str, str]] = {}
    for part, listed in items.items():
        for item in listed:
            first, path = seen.setdefault(real[item.path], (part, item.path))
            if first != part and path != item.path:
                raise AdaptError(
                    f"{where}: {item.path!r} ({part}) is the same picture as {path!r} ({first}) by symbolic links. "
                    "Keep one of them."
                )


def real_paths(paths: Iterable[str]) -> dict[str, str]:
    """Each path without symbolic links; folders are looked up once, because they have many files."""
    folders: dict[str, str] = {}
    real: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        whole = os.path.join(folders[folder], name)
        real[path] = os.path.realpath(whole) if os.path.islink(whole) else whole
    return real
