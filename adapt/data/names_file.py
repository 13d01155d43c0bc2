"""Readable class names for folders and labels that have none: a CSV or JSON file beside the data."""

from __future__ import annotations

import csv
import json
import os
from typing import Any, TextIO

from adapt.errors import AdaptError

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
        with open(source, encoding="utf-8-sig", newline="") as file:
            pairs = _from_csv(file, where) if source.endswith(".csv") else _from_json(file, where)
    except (OSError, ValueError, csv.Error) as error:
        raise AdaptError(f"{where} cannot be read: {error}.") from error
    names: dict[str, str] = {}
    for number, pair in enumerate(pairs, 1):
        match pair:
            case [str(key), str(name)] if key and name and key not in names:
                names[key] = name
            case _:
                raise AdaptError(f"{where}: entry {number} is {pair}; expected a class, given once, and its name.")
    return names


def _from_csv(file: TextIO, where: str) -> list[Any]:
    first, *rows = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)] or [[]]
    if first != _COLUMNS:
        raise AdaptError(f"{where}: the first line is {','.join(first)!r}; expected {','.join(_COLUMNS)!r}.")
    return rows


def _from_json(file: TextIO, where: str) -> list[Any]:
    content = json.load(file, object_pairs_hook=tuple)  # pairs, so that a key that stands twice is seen
    if not isinstance(content, tuple):
        raise AdaptError(f"{where}: expected an object {{class: name}}.")
    return list(content)
