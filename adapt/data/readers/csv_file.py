"""CSV files that list images, or texts in their place, with labels, texts or numbers."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from adapt.cells import unguarded
from adapt.data.decoding.files import under
from adapt.data.decoding.regions import parted, region
from adapt.data.readers import parts
from adapt.data.readers.grades import graded
from adapt.data.readers.lines import read_text
from adapt.data.readers.rows import Listed, by_rarest, check_listed_once, one_each, real_paths, to_split
from adapt.data.split import SEPARATOR, Item, Split
from adapt.errors import AdaptError, nearest

_BOX = ("x0", "y0", "x1", "y1")
_OF_PAIRS = ("rephrased", "entity")
_OF_A_PAIR = "the columns path,text, perhaps with entity, and no label"
_OF_LINES = ("path", "label", "labels", "split", "domain", "question", "group", "text", "target", "mask")
_COLUMNS = (*_OF_LINES, *_OF_PAIRS, *_BOX, "overlap")
_OTHER_WORDS = {  # which other tables use
    **dict.fromkeys(("file", "filename", "file_name", "filepath", "file_path"), "path"),
    **dict.fromkeys(("image", "image_path", "img", "img_path"), "path"),
    **dict.fromkeys(("class", "class_name", "category"), "label"),
    **dict.fromkeys(("classes", "categories", "tags"), "labels"),
    **dict.fromkeys(("set", "subset", "part"), "split"),
    "caption": "text",
}
_FIRST_LINE = (
    "path,label[,split][,domain][,question][,group][,mask], or text,label[,split] with texts in place of images, or "
    "path,text[,rephrased][,entity][,split] with pairs of both, or text with texts alone, or "
    "path,target[,label][,split] with numbers, or path,labels[,split] with several names each, as in "
    f"cat{SEPARATOR}dog; beside any of these x0,y0,x1,y1 for regions, and overlap with labels of these"
)


def read_csv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = parts.RATIOS,
    seed: int = 0,
) -> Split:
    """The split in a CSV file with the columns `path,label[,split][,domain][,question][,group][,text][,mask]`.

    `label` is the class name, or with a column `question` the answer. Paths start from `root`, by default the CSV's
    folder, and must stay under it. Without a `split` column the images are divided by `ratios` (train, val, test) and
    `seed`. `group` names images that are more alike than others of their class, such as one object's photographs. A
    line with a `text` and no path is a text to learn from; without a column `label` each other line is a pair of an
    image and a text, of which an image may have several; `rephrased`, where it is not empty, says the same as the text,
    and pairs of one `entity` belong together, and in one part where the CSV does not divide them. A `target` is a
    number, such as a grade, and its `label` a word for it, or else one of bad, poor, fair, good and perfect, by fifths
    of what lies between the extremes. A column `labels` in place of `label` has the names of all classes that are seen,
    separated by `|`, or nothing. A `mask` is the path of a picture that is bright where the image is not as it should
    be. Columns `x0,y0,x1,y1` are the edges of a region in pixels, left and upper, right and lower: each region is an
    image by itself, a line without them the whole one, and regions of one image stay together. `overlap` beside a
    `label` is how much a region and its object's box overlap: intersection over union, 0 to 1. What symbolic links list
    again counts once. Cells may be guarded as in `adapt.cells`.

    Raises AdaptError, naming the line, when a column or a value is not as expected.
    """
    source = os.fspath(path)
    folder = os.path.abspath(Path(source).parent if root is None else root)
    rows = _listed(source, folder)
    check_listed_once(rows, f"CSV {source!r}")
    texts, rows = ([row for row in rows if bool(row.path) is kind] for kind in (False, True))
    rows = texts + one_each(rows, folder, real_paths(row.path for row in rows), f"CSV {source!r}")
    rows = graded(rows) if any(row.target is not None and not row.class_name for row in rows) else rows
    class_names = sorted({row.class_name for row in rows if row.class_name})
    if rows[0].class_names is not None:
        class_names = sorted({name for row in rows for name in row.class_names or ()})
        _check_separator(class_names, f"CSV {source!r}")
        if not class_names:
            raise AdaptError(f"CSV {source!r}: all cells of the column 'labels' are empty. Give some image a class.")
        rows = by_rarest(rows)
    return to_split(Path(source).stem, folder, rows, class_names, ratios, seed)


def read_pairs(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[tuple[Item, str]]:
    """The images with their texts that a CSV file lists as `path,text[,entity]`, of all its parts, in its order.

    Each with the image's path from `root`, where paths start, by default the CSV's folder. Raises AdaptError,
    naming the line, as `read_csv` does, and for what is no pair.
    """
    folder = os.path.abspath(Path(path).parent if root is None else root)
    rows = _listed(os.fspath(path), folder, needed={"path", "text"})
    for row in rows:
        if row.class_name or not (row.path and row.text):
            raise AdaptError(
                f"CSV {os.fspath(path)!r}: {row.path or row.text!r} is no image with its text. Expected {_OF_A_PAIR}."
            )
    return [
        (Item(label=number, turned=True, **row.of_item), os.path.relpath(row.path, folder))
        for number, row in enumerate(rows)
    ]


def _listed(source: str, folder: str, needed: Collection[str] = ()) -> list[Listed]:
    """The lines of a CSV that has the columns `needed`, if any."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(source), newline=""), strict=True)
        if not set(needed) <= set(reader.fieldnames or ()):
            raise AdaptError(f"CSV {source!r} has no pairs of an image and its text. Expected {_OF_A_PAIR}.")
        rows = list(_rows(reader, folder, f"CSV {source!r}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AdaptError(f"CSV {source!r} cannot be read: {error}.") from error
    if not rows:
        raise AdaptError(f"CSV {source!r} lists no images.")
    return rows


def read_paths(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The images that a CSV file lists in its column `path`, or their regions, whatever else it says of them.

    Each with what the file calls it; paths start from its folder. Raises AdaptError, naming the line, for one that
    leads out of it, and for a box that is none.
    """
    where = f"CSV {os.fspath(path)!r}"
    folder = os.path.abspath(Path(path).parent)
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = [(f"{where} line {reader.line_num}", _cells(record, where)) for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AdaptError(f"{where} cannot be read: {error}.") from error
    _check_box(reader.fieldnames or (), where)
    if "path" not in (reader.fieldnames or ()) or not rows:
        of_paths = [each for each in reader.fieldnames or () if _OTHER_WORDS.get(each.strip().casefold()) == "path"]
        hint = f" Rename {of_paths[0]!r} to it." if of_paths else ""
        raise AdaptError(
            f"{where}: expected a column 'path', perhaps with {', '.join(_BOX)}, and a line for each image.{hint}"
        )
    return [(_path(cells, folder, line), _path(cells, "", line)) for line, cells in rows]


def _rows(reader: csv.DictReader[str], folder: str, where: str) -> Iterator[Listed]:
    columns = reader.fieldnames or ()
    for column in columns:
        if column not in _COLUMNS:
            raise AdaptError(f"{where}: unknown column {column!r}; {_hint(column)}.")
    _check_box(columns, where)
    if {"mask", _BOX[0]} <= set(columns):
        raise AdaptError(
            f"{where}: a mask is of a whole image, and {', '.join(_BOX)} of regions. Take one of them out."
        )
    if "labels" in columns:
        for column in filter(columns.__contains__, ("label", "question", "text", "target")):
            raise AdaptError(f"{where}: the columns 'labels' and {column!r} do not go together. Take one of them out.")
    needed = ("path", "labels" if "labels" in columns else "label")
    for column in () if "text" in columns or {"path", "target"} <= set(columns) else needed:
        if column not in columns:
            raise AdaptError(f"{where}: no column {column!r}. Expected a first line {_FIRST_LINE}.")
    for column in () if "overlap" not in columns else ("label", "question", "text", "target"):
        if (column in columns) is not (column == "label"):
            need = "needs a column" if column == "label" else "does not go with a column"
            raise AdaptError(f"{where}: a column 'overlap' is of regions with one label: it {need} {column!r}.")
    if "question" in columns and "label" not in columns:
        raise AdaptError(f"{where}: a column 'question' needs a column 'label' with the answers.")
    of_pairs = {"path", "text"} <= set(columns) and "label" not in columns
    for column in () if of_pairs else filter(columns.__contains__, _OF_PAIRS):
        raise AdaptError(f"{where}: a column {column!r} is of pairs, with the columns path and text and no label.")
    for record in reader:
        yield _row(record, folder, f"{where} line {reader.line_num}")


def _hint(column: str) -> str:
    """The column that an unknown one was meant to be, if that can be told."""
    meant = _OTHER_WORDS.get(column.strip().casefold())
    return f"did you mean {meant!r}? Rename it" if meant else nearest(column, _COLUMNS, "docs/own_data.md")


def _row(record: dict[str | None, str | None], folder: str, where: str) -> Listed:
    """One line."""
    cells = _cells(record, where)
    either = "text" in cells and "label" in cells
    for column in ("label", "question", *(() if either else ("text",)), *(() if "text" in cells else ("path",))):
        if not cells.get(column, "absent"):
            raise AdaptError(f"{where}: the {column} is empty.")
    if either and bool(cells["text"]) is bool(cells.get("path")):
        raise AdaptError(f"{where}: expected a path or a text, one of both and not the other.")
    part = ""
    if "split" in cells:
        if cells["split"] not in parts.ALIASES:
            raise AdaptError(f"{where}: unknown split {cells['split']!r}; {nearest(cells['split'], parts.ALIASES)}.")
        part = parts.ALIASES[cells["split"]]
    if not cells.get("path") and any(cells.get(edge) for edge in _BOX):
        raise AdaptError(f"{where}: a box without a path. Give the image that it is of.")
    path = _path(cells, folder, where) if cells.get("path") else ""
    named = ("domain", "question", "group", "text", "entity")
    domain, question, group, text, entity = (cells.get(each, "") for each in named)
    whole, box = parted(path)
    group = group if box is None else group or whole
    target, overlap = (_number(cells[each], where, each) if each in cells else None for each in ("target", "overlap"))
    label, rephrased = cells.get("label", ""), cells.get("rephrased", "")
    several = _names(cells["labels"], where) if "labels" in cells else None
    mask = under(folder, cells["mask"], where) if cells.get("mask") else ""
    if mask and box is not None:
        raise AdaptError(f"{where}: a mask is of a whole image, and {path!r} is a region. Take one of them out.")
    return Listed(path, label, part, domain, question, group, text, target, several, mask, rephrased, entity, overlap)


def _names(cell: str, where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in cell.split(SEPARATOR)) if cell else ()
    for name in names:
        if not name or names.count(name) > 1:
            raise AdaptError(f"{where}: the labels are {cell!r}; expected different names, as in cat{SEPARATOR}dog.")
    return names


def _check_separator(names: Sequence[str], where: str) -> None:
    """AdaptError for a name that another separator makes several others of: it was to be them."""
    for other in ";,":
        parts_of = {name: {part.strip() for part in name.split(other)} for name in names}
        count = Counter(part for own in parts_of.values() for part in own)
        for name, own in parts_of.items():
            if len(own) > 1 and all(count[part] > 1 for part in own):
                raise AdaptError(
                    f"{where}: the column 'labels' has {name!r}, and other cells have each of its parts: separate "
                    f"names by {SEPARATOR!r}, as in {SEPARATOR.join(sorted(own))}. A class that is called so has to be "
                    "called otherwise."
                )


def _check_box(columns: Sequence[str], where: str) -> None:
    if missing := set(_BOX) - set(columns) if set(_BOX) & set(columns) else ():
        raise AdaptError(f"{where}: no column {min(missing)!r}. A region needs all of {', '.join(_BOX)}.")


def _cells(record: dict[str | None, str | None], where: str) -> dict[str | None, str]:
    """Those of a line; one too many has the key None, one too few the value None."""
    if None in record or None in record.values():
        raise AdaptError(f"{where}: more or fewer cells than the first line has. Quote values that hold a comma.")
    return {column: unguarded((value or "").strip()) for column, value in record.items()}


def _path(cells: dict[str | None, str], folder: str, where: str) -> str:
    """The image of a line, or its region."""
    path = under(folder, cells["path"], where)
    if not any(cells.get(edge) for edge in _BOX):
        return path
    left, upper, right, lower = (_number(cells[edge], where, edge) for edge in _BOX)
    try:
        return region(path, (left, upper, right, lower))
    except ValueError as error:
        box = ", ".join(f"{edge} {cells[edge]}" for edge in _BOX)
        raise AdaptError(f"{where}: the box is {box}; {error}.") from None


def _number(cell: str, where: str, column: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise AdaptError(f"{where}: the {column} is {cell!r}; expected a number.")
    return number
