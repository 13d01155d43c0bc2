"""CSV files that list images, or texts in their place, with labels, texts or numbers."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path

from adapt.cells import unguarded
from adapt.data.decoding.files import under
from adapt.data.readers import parts
from adapt.data.readers.grades import graded
from adapt.data.readers.lines import read_text
from adapt.data.readers.rows import Listed, one_each, real_paths, to_split
from adapt.data.split import Split
from adapt.errors import AdaptError, nearest

_COLUMNS = ("path", "label", "split", "domain", "question", "group", "text", "target")
_FIRST_LINE = (
    "path,label[,split][,domain][,question][,group], or text,label[,split] with texts in place of images, or "
    "path,text[,split] with pairs of both, or text with texts alone, or path,target[,label][,split] with numbers"
)


def read_csv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = parts.RATIOS,
    seed: int = 0,
) -> Split:
    """The split in a CSV file with the columns `path,label[,split][,domain][,question][,group][,text]`.

    `label` is the class name, or with a column `question` the answer. Paths start from `root`, by default the CSV's
    folder, and must stay under it. Without a `split` column the images are divided by `ratios` (train, val, test) and
    `seed`. `group` names images that are more alike than others of their class, such as one object's photographs. A
    line with a `text` and no path is a text to learn from; without a column `label` each other line is a pair of an
    image and a text, of which an image may have several. A `target` is a number, such as a grade, and its `label` a
    word for it, or else one of bad, poor, fair, good and perfect, by fifths of what lies between the extremes. What
    symbolic links list again counts once. Cells may be guarded as in `adapt.cells`.

    Raises AdaptError, naming the line, when a column or a value is not as expected.
    """
    source = os.fspath(path)
    folder = os.path.abspath(Path(source).parent if root is None else root)
    try:
        lines = io.StringIO(read_text(source), newline="")
        rows = list(_rows(csv.DictReader(lines, strict=True), folder, f"CSV {source!r}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AdaptError(f"CSV {source!r} cannot be read: {error}.") from error
    if not rows:
        raise AdaptError(f"CSV {source!r} lists no images.")
    _check_listed_once(rows, f"CSV {source!r}")
    texts, rows = ([row for row in rows if bool(row.path) is kind] for kind in (False, True))
    rows = texts + one_each(rows, folder, real_paths(row.path for row in rows), f"CSV {source!r}")
    rows = graded(rows) if any(row.target is not None and not row.class_name for row in rows) else rows
    class_names = sorted({row.class_name for row in rows if row.class_name})
    return to_split(Path(source).stem, folder, rows, class_names, ratios, seed)


def _check_listed_once(rows: Sequence[Listed], where: str) -> None:
    """AdaptError for a picture that is listed for two parts, or two classes; several questions may be about one."""
    listed: dict[str, Listed] = {}
    for row in filter(attrgetter("path"), rows):
        first = listed.setdefault(row.path, row)
        for what, one, other in (("parts", first.part, row.part), ("classes", first.class_name, row.class_name)):
            if one != other and not row.question:
                raise AdaptError(
                    f"{where}: {row.path!r} is of two {what}, {one!r} and {other!r}. Keep one of the lines."
                )


def _rows(reader: csv.DictReader[str], folder: str, where: str) -> Iterator[Listed]:
    columns = reader.fieldnames or ()
    for column in columns:
        if column not in _COLUMNS:
            raise AdaptError(f"{where}: unknown column {column!r}; {nearest(column, _COLUMNS)}.")
    for column in () if "text" in columns or {"path", "target"} <= set(columns) else ("path", "label"):
        if column not in columns:
            raise AdaptError(f"{where}: no column {column!r}. Expected a first line {_FIRST_LINE}.")
    if "question" in columns and "label" not in columns:
        raise AdaptError(f"{where}: a column 'question' needs a column 'label' with the answers.")
    for record in reader:
        yield _row(record, folder, f"{where} line {reader.line_num}")


def _row(record: dict[str | None, str | None], folder: str, where: str) -> Listed:
    """One line; a cell too many has the key None, a cell too few the value None."""
    if None in record or None in record.values():
        raise AdaptError(f"{where}: more or fewer cells than the first line has. Quote values that hold a comma.")
    cells = {column: unguarded((value or "").strip()) for column, value in record.items()}
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
    path = under(folder, cells["path"], where) if cells.get("path") else ""
    domain, question, group, text = (cells.get(each, "") for each in ("domain", "question", "group", "text"))
    target = _number(cells["target"], where) if "target" in cells else None
    return Listed(path, cells.get("label", ""), part, domain, question, group, text, target)


def _number(cell: str, where: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise AdaptError(f"{where}: the target is {cell!r}; expected a number.")
    return number
