"""Tables with images: data sets of the Hugging Face library `datasets`, and Parquet files, which it reads too.

Images stay in the library's Arrow files, and are read there when they are needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.common.errors import AdaptError, needing, noting
from adapt.common.shown import SEPARATOR, brief, first_of, one_line
from adapt.data.decoding.files import Stored
from adapt.data.decoding.inline import images_in
from adapt.data.item import PLACES, unknown_columns
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.captions_file import pairs_of
from adapt.data.readers.chats_file import is_chat, split_of
from adapt.data.readers.csv_file import row_of, split_of_lines, task_of, words_here
from adapt.data.readers.rows import IMAGES, TEXT, Listed, renamed, without_rows
from adapt.data.split import Split

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("adapt")
_Row = dict[str, Any]
_NO_CAPTIONS = ("label", "labels", "target", "question", "entity")  # columns beside which a text is no caption


def read_hugging_face(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = parts.RATIOS,
    seed: int = 0,
    columns: Mapping[str, str] = {},
) -> Split:
    """Return a table: a folder of `save_to_disk` or of Parquet as on the hub, a `.parquet`, or a data set on the hub.

    The library `datasets` downloads data sets from the hub. Rows that have keys of conversations are read as those in
    a `.jsonl` (see `read_chats`), other rows as lines of a CSV file (see `read_csv`), where the only column of images
    is the path, and the only one of class labels the label, whose class numbers are kept. Other columns of such tables
    are ignored, with a warning. An image is in the table, or a path that starts from `root`, by default the folder of
    `source`. `columns` has columns of the table with what they are called here (see `adapt.data.load`). `ratios`
    (train, val, test) and `seed` divide a data set that is not divided, or has only one part.

    Raises AdaptError if the library is missing or finds no such data set, and if columns or rows are not as expected.
    """
    source = os.fspath(source)
    where = f"data {source!r}"
    tables = _tables(source)
    folder = os.path.abspath(root or (source if os.path.isdir(source) else os.path.dirname(source)))
    rows: list[_Row] = []
    for part, table in tables.items():
        if len(tables) > 1 and "split" in table.column_names:
            raise AdaptError(f"{where} has parts, and a column split too: take one of them out")
        rows += (row if len(tables) == 1 else row | {"split": part} for row in _rows(table, f"{where}, part {part}"))
    features = next(iter(tables.values())).features
    images = [name for name, feature in features.items() if _holds_images(feature)]
    if len(images) == 1 and images[0] not in (*columns, *IMAGES):
        columns = {**columns, images[0]: "image"}
    stored, rows = rows, renamed(rows, columns, where)
    if is_chat(rows[0]):
        return split_of(rows, where, source, folder, stored)
    if not set(rows[0]).isdisjoint(TEXT) and set(rows[0]).isdisjoint(_NO_CAPTIONS):
        return pairs_of(rows, where, source, folder, ratios, seed)
    labels = {columns.get(name, name): own for name, feature in features.items() if (own := _class_names(feature))}
    order = [*(columns.get(name, name) for name in images), *rows[0]]
    words = words_here(order)
    meant = {words[name]: name for name in reversed(order) if name in words}
    if len(labels) == 1 and not {"labels", *columns.values()}.intersection((*labels, "label")):
        meant["label"] = next(iter(labels))
    meant = {name: own for own, name in meant.items() if own not in rows[0]}
    rows, labels = renamed(rows, meant, where), {meant.get(name, name): own for name, own in labels.items()}
    unknown = unknown_columns(list(rows[0]))
    known = sorted(set(rows[0]).difference(unknown))
    advice = f"{where} has the columns {', '.join(features)}: say what they are: --columns image=NAME,label=NAME"
    unclear = [name for name in unknown if name in (*map(columns.get, images), *images, *columns.values())]
    if unclear or "path" not in known or (unknown and PLACES.issuperset(known)):
        raise AdaptError(f"{advice},ignored=NAME")
    if unknown:
        logger.warning("%s: ignored columns: %s", where, first_of(sorted(unknown)))
    task, listed, problems = task_of(known, where), list[Listed](), list[str]()
    for number, row in enumerate(rows, 1):
        place = f"{where} row {number}"
        with noting(problems):
            cells = {name: _text(row.get(name), name, (*task.images, *task.files), place) for name in known}
            listed.append(row_of(cells, task, folder, place))
    names, name = labels.get("label"), source.rstrip("/")
    return without_rows(problems, lambda: split_of_lines(listed, where, name, folder, ratios, seed, names))


def _text(value: object, name: str, images: Collection[str], where: str) -> str:
    """Return a cell of the column `name` as it stands in a CSV file."""
    if isinstance(value, Stored) and name not in images:
        raise AdaptError(f"{where}: {name} is an image; expected a text or a number")
    if isinstance(value, list) and name == "labels":
        return SEPARATOR.join(map(str, value))
    if isinstance(value, list | dict):
        raise AdaptError(f"{where}: {name} is {brief(value)}; expected one value")
    return value if isinstance(value, Stored) else "" if value is None else str(value).strip()


def _holds_images(feature: Any) -> bool:
    """Return whether a column has images, or lists of them: of the library's type, or in bytes."""
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, dict):
        return "bytes" in feature
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a column of class labels, or of lists of them."""
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _tables(source: str) -> dict[str, Dataset]:
    """Return the data set `source` as {part: table}, where the parts have adapt's names (train, val, test)."""
    with needing("Hugging Face data", "the library datasets", "hf-data"):
        import datasets
    try:
        if source.endswith(".parquet"):
            loaded = datasets.load_dataset("parquet", data_files=source)
        elif not os.path.isdir(source):
            loaded = datasets.load_dataset(source)
        elif any(Path(source).rglob("*.parquet")):  # as the hub stores it
            loaded = datasets.load_dataset("parquet", data_dir=source)
        else:
            loaded = datasets.load_from_disk(source)
    except (OSError, ValueError, IndexError, datasets.exceptions.DatasetGenerationError) as error:
        raise AdaptError(f"the library datasets cannot load {source!r}: {one_line(error)}") from error
    named = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    part_of = {name: parts.read(name, f"data {source!r}") for name in named}
    if len(set(part_of.values())) < len(named):
        raise AdaptError(f"data {source!r} has two splits for one part: {', '.join(named)}. Save one for each part")
    if not any(map(len, named.values())):
        raise AdaptError(f"data {source!r} has no rows")
    return {part_of[name]: dataset for name, dataset in named.items()}


def _rows(dataset: Dataset, where: str) -> Iterator[_Row]:
    """Yield the rows of a table; an image that it contains is its path, `TABLE.arrow!COLUMN/ROW`, or `/N` in a list."""
    if dataset._indices is not None:  # rows chosen or shuffled after they were written
        raise AdaptError(
            f"{where}: rows were selected or reordered after the files of the data set were written. Save the data set "
            "with save_to_disk and load the result"
        )
    content = {name: dataset.data.column(name) for name in dataset.column_names}
    binary = [name for name, feature in dataset.features.items() if _holds_images(feature)]
    for name, column in content.items():
        if name not in binary and "binary" in str(column.type):
            raise AdaptError(f"{where}: {name} has bytes among other values. Put images into a column images, in order")
    names = {name: each for name, feature in dataset.features.items() if (each := _class_names(feature))}
    others = [name for name in dataset.column_names if name not in binary]
    plain = dataset.select_columns(others).with_format(None) if others else ({} for _ in range(len(dataset)))
    for number, ((table, own), row) in enumerate(zip(_places(dataset), plain, strict=True)):
        if any(images_in(row)):
            raise AdaptError(f"{where}: row {number} has an image as text. Cast its column to Image with datasets")
        for name, of in names.items():
            row[name] = _named(row[name], of)
        yield row | {name: _image(content[name][number], f"{table}!{name}/{own}") for name in binary}


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the names of class numbers; a label that is not known, -1, is None."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return None if value is None or value < 0 else names[value]


def _image(cell: Any, path: str) -> object:
    """Return the image in an Arrow cell by its path in the table, or outside of it; of a list, that of each."""
    if not cell.is_valid:
        return None
    if str(cell.type).startswith(("list", "large_list")):
        return [_image(each, f"{path}/{number}") for number, each in enumerate(cell)]
    inside = cell["bytes"].is_valid if str(cell.type).startswith("struct") else True
    if inside:
        return Stored(path)
    outside: str | None = cell["path"].as_py()
    return Stored(outside) if outside and os.path.isabs(outside) else outside


def _places(dataset: Dataset) -> Iterator[tuple[str, int]]:
    """Yield (path of the Arrow file, row number in this file) for each row of the data set."""
    import pyarrow

    for entry in dataset.cache_files:
        path = os.path.abspath(entry["filename"])
        count = pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all().num_rows
        yield from ((path, row) for row in range(count))


class HuggingFace(Reader):
    name = "hugging_face"
    takes = "hf:NAME or a .parquet"
    reads = staticmethod(read_hugging_face)
    prefix = "hf:"
    suffixes = (".parquet",)
    root = "may"
    takes_columns = True
