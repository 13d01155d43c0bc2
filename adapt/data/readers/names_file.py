"""Files (CSV or JSON) with readable names for the classes of a data set."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence

from adapt.cells import unguarded
from adapt.data.readers.lines import read_text, readable
from adapt.errors import AdaptError
from adapt.shown import brief


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return a new name for each class, from a `.csv` with the header `class,name` or a `.json` `{class: name}`.

    Raises AdaptError, naming the entry, for a file of another form and for a class with two names.
    """
    where = f"class names {os.fspath(path)!r}"
    names: dict[str, str] = {}
    for number, pair in enumerate(read_entries(os.fspath(path), where, ("class", "name")), 1):
        match pair:
            case [str(key), str(name)] if key and name and key not in names:
                names[key] = name
            case _:
                raise AdaptError(
                    f"{where}: entry {number} is {brief(pair)}; expected a class and its new name, each class once"
                )
    return names


def read_entries(source: str, where: str, columns: tuple[str, str]) -> Sequence[object]:
    """Return the entries of the file `source` as pairs of a class and a value, such as its name; they are unchecked.

    A `.csv` has the first line `columns`, a `.json` is an object of values by class. Raises AdaptError, which calls the
    file `where`, for a file of another form.
    """
    if not source.endswith((".csv", ".json")):
        raise AdaptError(f"{where} are neither a .csv nor a .json file: give one of these")
    with readable(where):
        text = read_text(source)
        if source.endswith(".json"):
            content = json.loads(text, object_pairs_hook=tuple)  # pairs, to notice a key that occurs twice
            if not isinstance(content, tuple):
                raise AdaptError(f"{where}: expected an object {{{columns[0]}: {columns[1]}}}")
            return content
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        first, *rows = [[unguarded(cell.strip()) for cell in row] for row in lines if row] or [[]]
    if first != list(columns):
        raise AdaptError(f"{where}: the first line is {','.join(first)!r}; expected {','.join(columns)!r}")
    return rows
