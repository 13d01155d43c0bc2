"""Readers of texts, such as captions: a column of a CSV, or a file with one text on each line."""

from __future__ import annotations

import os
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.shown import unguarded
from adapt.data.item import Item
from adapt.data.readers.base import Reader
from adapt.data.readers.lines import csv_reader, read_lines, readable
from adapt.data.split import Split


def read_texts(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Return the column `text` of a CSV file, each text with the number of its line.

    Raises AdaptError if the column is missing or has an empty text.
    """
    where = f"CSV {os.fspath(path)!r}"
    with readable(where):
        rows = csv_reader(path)
        texts = [(rows.line_num, unguarded((row.get("text") or "").strip())) for row in rows]
    if "text" not in (rows.fieldnames or ()):
        raise AdaptError(f"{where} has no column 'text'. Call the column of texts 'text'")
    for line, text in texts:
        if not text:
            raise AdaptError(f"{where} line {line}: the text is empty. Fill in the text or remove its row")
    return texts


def read_list(path: str | os.PathLike[str]) -> Split:
    """Return a `Split` whose training items are the lines of a text file, without repeated lines.

    Raises AdaptError if the file is empty or cannot be read.
    """
    texts = dict.fromkeys(read_lines(path))
    if not texts:
        raise AdaptError(f"list {os.fspath(path)!r} is empty: expected one text per line")
    train = tuple(Item.of(text=text) for text in texts)
    return Split(Path(path).stem, (), train, (), ())


class TextsFile(Reader):
    name = "texts_file"
    takes = "a .txt of texts"
    reads = staticmethod(read_list)
    suffixes = (".txt",)
