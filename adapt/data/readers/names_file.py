"""Readable class names for folders and labels that have none: a CSV or JSON file beside the data."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import Any

from adapt.cells import unguarded
from adapt.data.readers.lines import read_text
from adapt.errors import AdaptError
from adapt.shown import brief

_COLUMNS = ["class", "name"]


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Names by class, from a `.csv` with the first line `class,name`, or a `.json` with an object `{class: name}`.

    Raises AdaptError, naming the entry, for a file of another form and for a class with two names.
    """
    source = os.fspath(path)
    where = f"Class names {source!r}"
    if not source.endswith((".csv", ".json")):
        raise AdaptError(f"{where} are neither a .csv nor a .json file.")
    try:
        text = read_text(source)
        pairs = _from_csv(text, where) if source.endswith(".csv") else _from_json(text, where)
    # RecursionError: JSON with brackets in thousands
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise AdaptError(f"{where} cannot be read: {error}.") from error
    names: dict[str, str] = {}
    for number, pair in enumerate(pairs, 1):
        match pair:
            case [str(key), str(name)] if key and name and key not in names:
                names[key] = name
            case _:
                raise AdaptError(
                    f"{where}: entry {number} is {brief(pair)}; expected a class, given once, and its name."
                )
    return names


def _from_csv(text: str, where: str) -> list[Any]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    first, *rows = [[unguarded(cell.strip()) for cell in row] for row in lines] or [[]]
    if first != _COLUMNS:
        raise AdaptError(f"{where}: the first line is {','.join(first)!r}; expected {','.join(_COLUMNS)!r}.")
    return rows


def _from_json(text: str, where: str) -> list[Any]:
    content = json.loads(text, object_pairs_hook=tuple)  # pairs, so that a key that stands twice is seen
    if not isinstance(content, tuple):
        raise AdaptError(f"{where}: expected an object {{class: name}}.")
    return list(content)
