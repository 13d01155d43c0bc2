"""Making a split from listed images: class numbers, and a division into parts if the list does not give it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from adapt.common.errors import AdaptError, about, nearest
from adapt.common.grouping import grouped
from adapt.common.shown import SEPARATOR
from adapt.data.decoding.files import parted
from adapt.data.item import Item, Label, kind_of
from adapt.data.readers import parts
from adapt.data.split import InconsistentError, Split, kept_together

logger = logging.getLogger("adapt")
IGNORED = "ignored"  # the name of columns that are left out
IMAGE = (  # what a path of an image is called
    "image", "image_path", "image_url", "image_file", "img", "img_path", "path", "file", "filename", "file_name",
    "filepath", "file_path",
)  # fmt: skip
IMAGES = ("images", "image_paths", "image_urls", "imgs", *IMAGE)
TEXT = ("caption", "captions", "text")  # what a caption is called
_SEVERAL = " (a column 'labels' in place of 'label' may have several classes of an image)"


class Listed(NamedTuple):
    """A data set item and its part of the split: train, val, test or unlabelled, or "" if the data names no part.

    `bag` is the name of the bag that the item's image belongs to, or "" if the image is an item by itself.
    """

    item: Item
    part: str = ""
    bag: str = ""


def listed(path: str, cells: Mapping[str, Any], part: str = "", domain: str = "") -> Listed:
    """Return an item with its part of the split; `cells` is a dict from column names, such as label, to values."""
    return Listed(Item.of(path=path, domain=domain, **cells), part)


def group_of(row: Mapping[str, object]) -> str:
    """Return the group of a row in JSON, by its key `group` or `image_id`, or ""."""
    return next((str(row[key]) for key in ("group", "image_id") if row.get(key) not in (None, "")), "")


def columns_of(text: str) -> dict[str, str]:
    """Return {a list's own column: what it is called here} for a text such as `image=img,label=cat,ignored=notes`.

    Raises AdaptError for a text of another form, and if a column is given two names.
    """
    columns: dict[str, str] = {}
    for pair in text.split(","):
        name, _, column = (each.strip() for each in pair.partition("="))
        if not (name and column):
            raise AdaptError(f"columns are {text!r}; expected names, each with the list's own, as image=img,label=cat")
        if column in columns:
            raise AdaptError(f"columns are {text!r}: {column!r} is there twice. Give it one name")
        columns[column] = name
    return columns


def renamed(rows: Iterable[Any], columns: Mapping[str, str], where: str) -> list[Any]:
    """Return `rows` with keys called as `columns` says, and without those that are called `ignored`.

    Raises AdaptError if no row has one of the columns, and if a row has two of one name.
    """
    rows, unseen = list(rows), set(columns)
    for number, row in enumerate(rows) if columns else ():
        if not isinstance(row, dict):
            continue
        unseen.difference_update(row)
        kept = [(columns.get(key, key), key) for key in row if columns.get(key) != IGNORED]
        names = [name for name, _ in kept]
        if twice := next((name for name in names if names.count(name) > 1), None):
            both = " and ".join(repr(key) for name, key in kept if name == twice)
            raise AdaptError(f"{where} row {number + 1}: {both} would both be {twice!r}: ignore one")
        rows[number] = {name: row[key] for name, key in kept}
    if unseen:
        known = {key for row in rows if isinstance(row, dict) for key in row}
        raise AdaptError(f"{where}: no row has {min(unseen)!r}, which columns name; {nearest(min(unseen), known)}")
    return rows


def check_parts(rows: Sequence[Listed], where: str, advice: str) -> None:
    """Raise AdaptError, which ends with the `advice`, if some rows name their part (train, val, test), others none."""
    named = {bool(row.part): row.item.name for row in reversed(rows)}
    if len(named) == 2:
        raise AdaptError(f"{where}: {named[False]!r} has no split, but others have one: train, val or test. {advice}")


def in_bags(rows: Sequence[Listed], where: str) -> list[Listed]:
    """Return `rows` in which the images of each bag are one item. The items of a bag keep the place of its first image.

    Raises AdaptError if the images of a bag differ in part (train, val, test), label, domain or group, or if an image,
    or regions of it, are in two bags.
    """
    bags: dict[object, list[Listed]] = {}
    name_of: dict[str, str] = {}
    for number, row in enumerate(rows):
        bags.setdefault(row.bag or number, []).append(row)
        picture, _ = parted(row.item.path)
        first_bag = name_of.setdefault(picture, row.bag)
        if first_bag != row.bag:
            both = f"{first_bag!r} and {row.bag!r}"
            raise AdaptError(f"{where}: {picture!r} is in two items, {both}. Keep it in one of them")
    joined = []
    for first, *others in bags.values():
        for row in others:
            compared: dict[str, tuple[str | Label, str | Label]] = {
                "split": (first.part, row.part),
                "caption": (first.item.label.caption, row.item.label.caption),  # a part of the label
                "label": (first.item.label, row.item.label),
                "domain": (first.item.domain, row.item.domain),
                "group": (first.item.group, row.item.group),
            }
            for column, (one, other) in compared.items():
                if one != other:
                    words = [each.words if isinstance(each, Label) else each for each in (one, other)]
                    raise AdaptError(
                        f"{where}: the item {first.bag!r} has the {column} {words[0]!r} at {first.item.path!r}, but "
                        f"{words[1]!r} at {row.item.path!r}. All images of an item need the same {column}"
                    )
        paths = (first.item.path, *(row.item.path for row in others))
        names = tuple(name for row in (first, *others) for name in row.item.view_names)
        joined.append(first._replace(item=replace(first.item, paths=paths, view_names=names)) if first.bag else first)
    return joined


def without_rows(problems: Sequence[str], read: Callable[[], Split]) -> Split:
    """Return `read()`, which makes a split of a list's rows, of which those with `problems` were left out.

    Raises InconsistentError for the problems, with those of the split and the split itself.
    """
    if not problems:
        return read()
    split: Split | None = None
    others: list[str] = []
    try:
        split = read()
    except InconsistentError as error:
        split, others = error.split, error.problems
    except AdaptError as error:
        others = [str(error)]
    raise InconsistentError([*problems, *others], split, len(problems))


def to_split(
    name: str,
    root: str,
    rows: Sequence[Listed],
    class_names: Sequence[str] | None,
    ratios: Sequence[float],
    seed: int,
    turned: bool = True,
) -> Split:
    """Divide `rows` into a `Split` of train, val and test items. Images are rotated upright by EXIF if `turned`.

    Without `class_names`, the class names are taken from the rows. If no row names its part (train, val, test) and all
    items are images, the items are divided by `ratios` and `seed`. Otherwise, a row without a part is used for testing
    if the row has an image, and for training if the row is a text. Raises AdaptError if a class has no training item.
    """
    unlabelled = tuple(replace(row.item, turned=turned) for row in rows if row.part == parts.UNLABELLED)
    rows = [row for row in rows if row.part != parts.UNLABELLED]
    if not rows:
        labelled = f"none of the {len(unlabelled):,} images has a label. Label some of each class"
        raise AdaptError(f"data {name!r}: {labelled if unlabelled else 'there is no row that can be used'}")
    with about(f"data {name!r}"):  # some tasks derive each label from the labels of all items
        task = kind_of(row.item for row in rows)
        labels = task.completed([row.item.label for row in rows])
    items = [row.item.labelled(label) for row, label in zip(rows, labels, strict=True)]
    shares: tuple[float, ...] | None = None
    if any(row.part for row in rows) or not (task.mixes_texts or all(item.paths for item in items)):
        part_of = [row.part or ("test" if item.paths else "train") for row, item in zip(rows, items, strict=True)]
    else:
        part_of, shares = assigned(items, [item.stratum for item in items], ratios, seed), tuple(ratios)
    divided: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for item, part in zip(items, part_of, strict=True):
        divided[part].append(replace(item, turned=turned and bool(item.paths)))
    names = task.class_names(item.label for item in items) if class_names is None else tuple(class_names)
    train, val, test = map(tuple, divided.values())
    return Split(name, names, train, val, test, unlabelled, root=root, ratios=shares)


def assigned(items: Sequence[Item], strata: Sequence[str], ratios: Sequence[float], seed: int) -> list[str]:
    """Return the part (train, val, test) of each item, drawn by `ratios` and `seed` and stratified by `strata`.

    Items that are `kept_together`, such as regions of an image or questions about it, get the same part. They have the
    rarest of their strata, or the commonest in a task that may list an image many times. If a class would have no
    training item though the task needs one, its first item goes there, and those with it.
    """
    units = kept_together(items)
    if len(set(units)) == len(items):
        return parts.assign(strata, ratios, seed)
    task, count, of_unit = items[0].task, Counter(strata), dict[str, str]()
    choose = min if task.once_an_image else max
    for unit, own in zip(units, strata, strict=True):
        of_unit[unit] = choose(of_unit.get(unit, own), own, key=lambda name: (count[name], name))
    part_of = dict(zip(of_unit, parts.assign(list(of_unit.values()), ratios, seed), strict=True))
    names_of = grouped((unit, name) for item, unit in zip(items, units, strict=True) for name in item.class_names)
    learned = {name for unit, names in names_of.items() if part_of[unit] == "train" for name in names}
    for unit, names in () if task.learns_unseen else names_of.items():
        if not learned.issuperset(names):
            part_of[unit] = "train"
            learned.update(names)
    return [part_of[unit] for unit in units]


def check_listed_once(rows: Sequence[Listed], where: str) -> None:
    """Raise AdaptError if an image is listed in two parts (train, val, test), classes, entities or domains.

    Images of tasks that allow several rows per image are not checked.
    """
    seen: dict[tuple[str, str], str] = {}
    for item, part, _ in rows:
        if not (item.paths and item.task.once_an_image):
            continue
        for what, path, other in (
            ("parts", parted(item.path)[0], part),
            ("classes" if item.task.classes_are == "classes" else "labels", item.path, item.label.words),
            ("entities", parted(item.path)[0], item.unit),
            ("domains", parted(item.path)[0], item.domain),
        ):
            one = seen.setdefault((what, path), other)
            if one != other:
                raise AdaptError(
                    f"{where}: {path!r} is of two {what}, {one!r} and {other!r}. Keep one of the lines"
                    + _SEVERAL * (what == "classes")
                )


def one_each(rows: Sequence[Listed], root: str, where: str, real: Mapping[str, str] | None = None) -> list[Listed]:
    """Return `rows` without the symbolic links to images that another row already lists.

    All paths are below `root`, and `real` maps each path to its path with links resolved. If several rows list the same
    image, the row without a link is kept, or the first row if all rows are links. A warning is logged if a removed row
    has another part (train, val, test), class, entity or domain than the kept row. Raises AdaptError if links alone
    list an image with two parts, classes or entities, because the right row is unknown.
    """
    real = real_paths(row.item.path for row in rows) if real is None else real
    home = os.path.realpath(root)
    own = {row.item.path for row in rows if real[row.item.path] == home + row.item.path.removeprefix(root)}
    first_of: dict[str, Listed] = {}  # by real path
    lost: list[tuple[Listed, Listed]] = []
    for row in sorted(rows, key=lambda row: row.item.path not in own):  # stable
        first = first_of.setdefault(real[row.item.path], row)
        if first.item.path == row.item.path:
            continue
        if _counts_as(first) != _counts_as(row) and first.item.path not in own:
            raise AdaptError(f"{where}: {_pair(row, first)}, because both are symbolic links. Remove one link")
        if (_counts_as(first), first.item.domain) != (_counts_as(row), row.item.domain):
            lost.append((row, first))
    if lost:
        links = f"{len(lost):,} links of pictures that count elsewhere, such as {_pair(*lost[0])}"
        logger.warning("%s: left out %s.", where, links)
    return [row for row in rows if first_of[real[row.item.path]].item.path == row.item.path]


def _counts_as(row: Listed) -> tuple[str, str, str, str]:
    return row.part, SEPARATOR.join(row.item.class_names), row.item.unit, row.bag


def _pair(row: Listed, other: Listed) -> str:
    words = ((each.part, each.item.domain, SEPARATOR.join(each.item.class_names)) for each in (row, other))
    place, other_place = (" ".join(filter(None, own)) for own in words)
    return f"{row.item.path!r} ({place}) is the same picture as {other.item.path!r} ({other_place})"


def check_linked(items: Mapping[str, Sequence[Item]], where: str) -> None:
    """Raise AdaptError if different paths in two parts (train, val, test) are links to the same image."""
    real = real_paths(item.path for listed in items.values() for item in listed)
    seen: dict[str, tuple[str, str]] = {}
    for part, listed in items.items():
        for item in listed:
            first, path = seen.setdefault(real[item.path], (part, item.path))
            if first != part and path != item.path:
                raise AdaptError(
                    f"{where}: {item.path!r} ({part}) is the same picture as {path!r} ({first}), through "
                    "symbolic links. Remove one of the two entries"
                )


def real_paths(paths: Iterable[str]) -> dict[str, str]:
    """Return a dict from each path in `paths` to the path with all symbolic links resolved."""
    folders: dict[str, str] = {}
    real: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        joined = os.path.join(folders[folder], name)
        real[path] = os.path.realpath(joined) if os.path.islink(joined) else joined
    return real
