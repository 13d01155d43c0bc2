"""Files (CSV or JSON) with readable names for the classes of a data set."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence

from adapt.common.errors import AdaptError
from adapt.common.shown import brief, unguarded
from adapt.data.readers.lines import read_text, readable


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return {class: new name}, from a `.csv` file with the header `class,name` or a `.json` file `{class: name}`.

    Raises AdaptError, naming the entry, for any other format and for a class with two names.
    """
    where = f"class names {os.fspath(path)!r}"
    names: dict[str, str] = {}
    for number, pair in enumerate(read_entries(os.fspath(path), where, ("class", "name")), 1):
        match pair:
            case [str(key), str(name)] if key and name and key not in names:
                names[key] = name
            case _:
                raise AdaptError(
                    f"{where}: entry {number} is {brief(pair)}; expected a class and a new name, with each class once"
                )
    return names


def read_entries(source: str, where: str, columns: tuple[str, str]) -> Sequence[object]:
    """Return the unchecked entries of the file `source`, pairs of a class and a value such as a new name for the class.

    A `.csv` file has the header `columns`, and a `.json` file is an object `{class: value}`. Raises AdaptError, with a
    message that calls the file `where`, for any other format.
    """
    if not source.endswith((".csv", ".json")):
        raise AdaptError(f"{where} are neither a .csv nor a .json file: give a .csv or a .json file")
    with readable(where):
        text = read_text(source)
        if source.endswith(".json"):
            content = json.loads(text, object_pairs_hook=tuple)  # pairs, to notice a key that occurs twice
            if not isinstance(content, tuple):
                raise AdaptError(f"{where}: expected a JSON object {{{columns[0]}: {columns[1]}}}")
            return content
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        first, *rows = [[unguarded(cell.strip()) for cell in row] for row in lines if row] or [[]]
    if first != list(columns):
        raise AdaptError(f"{where}: the first line is {','.join(first)!r}; expected {','.join(columns)!r}")
    return rows
