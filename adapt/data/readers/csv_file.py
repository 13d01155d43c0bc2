"""CSV files that list images (or texts to learn from in their place), with labels and other columns."""

from __future__ import annotations

import csv
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapt.common.errors import AdaptError, nearest, noting
from adapt.common.shown import SEPARATOR, unguarded
from adapt.data.decoding.files import parted, region, under
from adapt.data.item import PLACES, Item, LabelKind, filled, known_columns, no_label, number, reading, unknown_columns
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.folder import IMAGE_SUFFIXES
from adapt.data.readers.lines import csv_reader, readable
from adapt.data.readers.rows import (
    IGNORED,
    IMAGE,
    TEXT,
    Listed,
    check_listed_once,
    in_bags,
    one_each,
    renamed,
    to_split,
    without_rows,
)
from adapt.data.split import InconsistentError, Split

logger = logging.getLogger("adapt")
_BOX = ("x0", "y0", "x1", "y1")
_NUMBERS = frozenset(("target", "overlap", *_BOX))
_MISSING = frozenset(("na", "n/a", "#n/a", "nan", "null"))  # as programs write an empty cell
_MANY = 20  # numbers above which a column of labels seems to hold measurements
_NUMBER, _FRACTION = re.compile(r"[+-]?\d*[.,]?\d+"), re.compile(r"[+-]?\d*[.,]\d*[1-9]\d*")
_DECIMAL_COMMA, _THOUSANDS = re.compile(r"\s*[+-]?[\d.]*\d,\d+\s*"), re.compile(r"\s*[+-]?[1-9]\d{0,2}[.,]\d{3}\s*")
_GUIDE = "docs/own_data.md"
OTHER_WORDS = {  # column names in other tables
    **dict.fromkeys(IMAGE, "path"),
    **dict.fromkeys(("class", "class_name", "category"), "label"),
    **dict.fromkeys(("classes", "categories", "tags"), "labels"),
    **dict.fromkeys(("set", "subset", "part"), "split"),
    **dict.fromkeys(TEXT, "text"),
    "image_id": "group",
}


def read_csv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = parts.RATIOS,
    seed: int = 0,
    columns: Mapping[str, str] = {},
) -> Split:
    """Return the split in a CSV file with the columns `path,label[,split][,domain][,question][,group][,text][,mask]`.

    Columns are separated by commas, semicolons or tabs, and backslashes in paths count as slashes.

    `label` is the class name, or the answer if there is a column `question`. Paths are relative to `root`, by default
    the CSV's folder, and must stay under `root`. Without a column `split`, images are divided by `ratios` (train, val,
    test) and `seed`. `group` names images that are more alike than other images of their class, such as photographs of
    one object; they stay in one part. Lines with the same `item` are images of one item, which has one label and gets
    one answer; `view` names what each shows, such as front or side.

    A line with a `text` but no path is a text to train on. Without a column for labels, each line with a path is a pair
    of an image and a text; an image may have several texts. A column `rephrased` has a paraphrase of the text, or is
    empty. Pairs with the same `entity` stay in one part (train, val, test) if the CSV has no column `split`. A `target`
    is a number, such as a quality score, and `label` is a word for the number. Without a `label`, the word is one of
    bad, poor, fair, good and perfect, by fifths of the range from the lowest to the highest target. A column `labels`,
    used instead of `label`, has the names of all classes in the image, separated by `|`, or is empty. A `mask` is the
    path of a picture that is bright where the image is defective.

    An image whose cell `label` is empty, or whose `split` is `unlabelled`, is an unlabelled image to learn from.

    Columns `x0,y0,x1,y1` are the left, upper, right and lower edges of a region in pixels. Each region counts as an
    image, a line without edges is the full image, and regions of one image stay together. The column `overlap` is the
    intersection over union, from 0 to 1, of a region and its object's box. A file that is listed again through symbolic
    links counts once. A `'` that `guarded` put before a formula is removed from a cell. `columns` has columns of the
    file with what they are called here (see `adapt.data.load`).

    Raises AdaptError, naming the line, if a column or a value is not as expected.
    """
    source = os.fspath(path)
    folder = os.path.abspath(Path(source).parent if root is None else root)
    where = f"CSV {source!r}"
    listed, problems = listed_in(source, folder, columns)
    return without_rows(problems, lambda: split_of_lines(listed, where, source, folder, ratios, seed))


def split_of_lines(
    listed: Sequence[Listed],
    where: str,
    source: str,
    folder: str,
    ratios: Sequence[float],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> Split:
    """Return the split of the lines of a list `source`, whose classes have an order if `class_names` are given."""
    check_listed_once(listed, where)
    texts, rows = ([row for row in listed if bool(row.item.paths) is kind] for kind in (False, True))
    rows = texts + in_bags(one_each(rows, folder, where), where)
    split = to_split(Path(source).stem, folder, rows, class_names, ratios, seed)
    _check_names(split, where)
    return split


def _check_names(split: Split, where: str) -> None:
    """Raise AdaptError if names of classes are measurements or several names, and warn of those that may be."""
    names = split.class_names
    joined = [name for name in names if SEPARATOR in name] if split.task.one_class else []
    for name in joined:
        if not {part.strip() for part in name.split(SEPARATOR)}.isdisjoint(names):
            raise AdaptError(
                f"{where}: the class {name!r} has another class in it. Call the column labels, or name the class "
                f"without {SEPARATOR!r}"
            )
    if joined:
        logger.warning("%s: %r is one class. Call the column labels if it is several", where, joined[0])
    if split.task.one_class and all(map(_NUMBER.fullmatch, names)):
        fractions, many = [name for name in names if _FRACTION.fullmatch(name)], len(names) > _MANY
        if fractions and many:
            raise AdaptError(
                f"{where}: {len(names)} numbers such as {fractions[0]} are classes. Call the column target to learn "
                "the numbers, or write words for the classes"
            )
        if fractions or many:
            which = f"numbers such as {fractions[0]}" if fractions else f"{len(names)} numbers"
            logger.warning("%s: %s are classes. Call the column target to learn numbers", where, which)
    spelt: dict[str, str] = {}
    for name in names:
        if (other := spelt.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)) != name:
            logger.warning("%s: the classes %r and %r differ in capitals or kinds of characters", where, other, name)
        if name.casefold() in _MISSING:
            logger.warning("%s: %r is a class. Leave the cell empty if it stands for an unknown label", where, name)


def read_pairs(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[tuple[Item, str]]:
    """Return all pairs of an image and a text in a CSV file with the columns `path,text[,entity]`, in the file's order.

    Each pair is returned with the image's path relative to `root`, which is by default the CSV's folder. Raises the
    errors of `read_csv`, and AdaptError for a line that is not a pair.
    """
    folder = os.path.abspath(Path(path).parent if root is None else root)
    rows, problems = listed_in(os.fspath(path), folder, {})
    if problems:
        raise AdaptError(problems[0])
    items = [row.item for row in rows]
    for item in items:
        if item.task.classes_are or not (item.paths and item.text):
            raise AdaptError(
                f"CSV {os.fspath(path)!r}: {item.name!r} is not an image with a text. Expected the columns "
                "path,text or path,text,entity, without a column label"
            )
    return [(replace(item, turned=True), os.path.relpath(item.path, folder)) for item in items]


def listed_in(source: str, folder: str, columns: Mapping[str, str]) -> tuple[list[Listed], list[str]]:
    """Return the lines of a CSV file as items, each with its part of the split, and problems of the other lines."""
    where, problems = f"CSV {source!r}", list[str]()
    with readable(where):
        reader = csv_reader(source)
        header = reader.fieldnames or ()
        words = words_here([columns.get(column, column) for column in header])
        columns = {column: words.get(name, name) for column, name in columns.items()}
        renamed([dict.fromkeys(header)], columns, f"{where}: the header,")  # which checks them
        reader.fieldnames = [columns.get(column, column) for column in header]
        rows = list(_rows(reader, folder, where, problems))
    if (separator := reader.reader.dialect.delimiter) != ",":
        logger.info("%s: the columns are separated by %r", where, separator)
    if not rows:
        what = "has no line that can be used" if reader.line_num > 1 else "lists no images"
        message = f"{where} {what}; expected at least one line below the header"
        raise InconsistentError([*problems, message], None, len(problems)) if problems else AdaptError(message)
    return rows, problems


def read_paths(path: str | os.PathLike[str]) -> list[tuple[str, str, str, str]]:
    """Return the paths of the images, or regions of images, that a CSV file lists in the column `path`.

    Each path is returned with the path as written in the file, and with the cells of the columns `item` and `view`, or
    else "". Paths are relative to the file's folder. Columns `x0,y0,x1,y1` give regions, and other columns are ignored.
    Raises AdaptError, naming the line, for a path that leads out of the folder, and for an invalid box.
    """
    where = f"CSV {os.fspath(path)!r}"
    folder = os.path.abspath(Path(path).parent)
    with readable(where):
        reader = csv_reader(path)
        rows = [(f"{where} line {reader.line_num}", _cells(record, where)) for record in reader]
    columns = reader.fieldnames or ()
    _check_box(columns, where)
    if "path" not in columns or not rows:
        of_paths = [column for column in columns if OTHER_WORDS.get(column.strip().casefold()) == "path"]
        hint = f" Rename {of_paths[0]!r} to 'path'." if of_paths else ""
        raise AdaptError(
            f"{where}: expected a column 'path', optionally columns {', '.join(_BOX)}, and a line for each image.{hint}"
        )
    listed = []
    for line, cells in rows:
        item = filled(cells, "item", line) if "item" in columns else ""
        listed.append((_path(cells, folder, line), _path(cells, "", line), item, cells.get("view", "")))
    return listed


def _rows(reader: csv.DictReader[str], folder: str, where: str, problems: list[str]) -> Iterator[Listed]:
    """Yield the lines as items, and append what is wrong with a line to `problems`."""
    columns = [column for column in reader.fieldnames or () if column != IGNORED]
    for column in unknown_columns(columns):
        meant = OTHER_WORDS.get(column.strip().casefold())
        hint = f"did you mean {meant!r}? Rename the column, or give --columns {meant}={column}" if meant else ""
        hint = hint or _columns_by_content(columns, next(reader, {})) or nearest(column, known_columns(), _GUIDE)
        raise AdaptError(f"{where}: unknown column {column!r}; {hint}")
    task = task_of(columns, where)
    numbers = _NUMBERS.intersection(columns) if reader.reader.dialect.delimiter != "," else ()
    noted = False
    for record in reader:
        record.pop(IGNORED, None)
        for column in numbers:  # of a spreadsheet, which may write decimal commas
            if _THOUSANDS.fullmatch(cell := record[column] or "") and not noted:
                noted = True
                logger.warning("%s line %d: %s is read as a number with decimals", where, reader.line_num, cell)
            if _DECIMAL_COMMA.fullmatch(cell):
                record[column] = cell.replace(".", "").replace(",", ".")
        with noting(problems):
            line = f"{where} line {reader.line_num}"
            yield row_of(_cells(record, line), task, folder, line)


def _columns_by_content(columns: Sequence[str], record: Mapping[str, str]) -> str:
    """Return the `--columns` that read a list in another language, or "" where its first line tells no image."""
    unknown = unknown_columns(columns)
    images = [column for column in unknown if (record.get(column) or "").lower().endswith(IMAGE_SUFFIXES)]
    if len(images) != 1 or "path" in columns:
        return ""
    others = [column for column in unknown if column not in images]
    labelled = "".join(f",{name}={other}" for name, other in zip(["label", *[IGNORED] * len(others)], others))
    return f"by its first line, {images[0]!r} has the images: give --columns path={images[0]}{labelled}"


def words_here(names: Collection[str]) -> dict[str, str]:
    """Return what the `names` of columns in other tables mean here; beside a label, a caption is no text of a pair."""
    meant = {name: OTHER_WORDS[name] for name in names if name in OTHER_WORDS}
    labelled = "label" in {*names, *meant.values()}
    return {name: own for name, own in meant.items() if not (labelled and name == "caption")}


def task_of(columns: Collection[str], where: str) -> LabelKind:
    """Return the task that reads a list with these columns. Raises AdaptError if no task does, or if columns clash."""
    _check_box(columns, where)
    if {"mask", _BOX[0]} <= set(columns):
        raise AdaptError(f"{where}: a column mask cannot go with {', '.join(_BOX)}. Leave out the mask or the regions")
    try:
        task = reading(frozenset(columns))
    except AdaptError as error:
        alone = PLACES.union(["caption"]).issuperset(columns)
        hint = ". By caption, did you mean text? Rename the column, or give --columns text=caption" if alone else ""
        raise AdaptError(f"{where}: {error}{hint}") from None
    if "item" in columns and not task.takes_bags:
        raise AdaptError(f"{where}: the column item joins images with one label, but the data has {task.title}")
    if "view" in columns and "item" not in columns:
        raise AdaptError(f"{where}: the column view is of the images of an item: add a column item, or leave view out")
    return task


def row_of(cells: dict[str, str], task: LabelKind, folder: str, where: str) -> Listed:
    """Return the item of a line, by its `cells`, with its part of the split (train, val, test, unlabelled or "").

    Raises AdaptError, which begins with `where`, as `read_csv` does.
    """
    paths, text = _paths(cells, task, folder, where), cells.get("text", "")
    part = parts.read(cells["split"], where, (parts.UNLABELLED,)) if "split" in cells else ""
    image, box = parted(paths[0]) if paths else ("", None)
    bag = cells.get("item", "") if paths else ""
    domain, group = cells.get("domain", ""), cells.get("group", "") or bag or ("" if box is None else image)
    if paths and part in ("", "train", parts.UNLABELLED) and task.lacks_label(cells) and not bag:
        return Listed(Item(paths, no_label(), domain, group), parts.UNLABELLED)
    if part == parts.UNLABELLED:
        raise AdaptError(f"{where}: expected a path, and no label, in a line of the split unlabelled. Empty the label")
    files = {column: under(folder, cells[column], where) for column in task.files if cells.get(column)}
    label = task.read(cells | files, where)
    if not paths and any(cells.get(edge) for edge in _BOX):
        raise AdaptError(f"{where}: there is a box but no path. Give the path of the image that contains the box")
    if "text" in cells and task.classes_are and bool(text) is bool(paths):
        raise AdaptError(f"{where}: expected either a path or a text, not both. Fill exactly one of the two cells")
    if not (paths or text):
        raise AdaptError(f"{where}: the {'text' if 'text' in cells else task.images[0]} is empty. Fill the cell")
    if box is not None and label.files:
        raise AdaptError(f"{where}: {paths[0]!r} is a region, but a mask is for a full image. Leave out the mask")
    if paths and "item" in cells:
        filled(cells, "item", where)
    views = (cells["view"],) if paths and "view" in cells else ()
    return Listed(Item(paths, label, domain, group, text, view_names=views), part, bag)


def _paths(cells: dict[str, str], task: LabelKind, folder: str, where: str) -> tuple[str, ...]:
    """Return the image paths of a line, or () if all path cells are empty. Raises AdaptError if only some are empty."""
    given = [column for column in task.images if cells.get(column)]
    if given and len(given) < len(task.images):
        missing = next(column for column in task.images if column not in given)
        raise AdaptError(f"{where}: the {missing} is empty. Fill the cell")
    if len(given) == 1:
        return (_path(cells, folder, where),)
    return tuple(under(folder, cells[column], where) for column in given)


def _check_box(columns: Collection[str], where: str) -> None:
    if missing := set(_BOX) - set(columns) if set(_BOX) & set(columns) else ():
        raise AdaptError(f"{where}: no column {min(missing)!r}. Regions need all the columns {', '.join(_BOX)}")


def _cells(record: dict[str | None, str | None], where: str) -> dict[str, str]:
    """Return the cells of a line, as {column: text}. Raises AdaptError if the line has too many or too few cells."""
    if None in record or None in record.values():
        raise AdaptError(
            f"{where}: more or fewer cells than the first line has. Quote values that contain the separator"
        )
    return {column or "": unguarded((value or "").strip()) for column, value in record.items()}


def _path(cells: dict[str, str], folder: str, where: str) -> str:
    """Return the path of the image in a line, or the path of a region of the image if the line has a box."""
    path = under(folder, cells["path"], where)
    if not any(cells.get(edge) for edge in _BOX):
        return path
    left, upper, right, lower = (number(cells[edge], where, edge) for edge in _BOX)
    try:
        return region(path, (left, upper, right, lower))
    except ValueError as error:
        box = ", ".join(f"{edge} {cells[edge]}" for edge in _BOX)
        raise AdaptError(f"{where}: the box is {box}; {error}") from None


class CSVFile(Reader):
    name = "csv_file"
    takes = "a .csv or .tsv"
    reads = staticmethod(read_csv)
    root = "may"
    takes_columns = True

    def claims(self, spec: str) -> bool:
        return spec.lower().endswith((".csv", ".tsv")) and os.path.isfile(spec)
