"""Readable class names for folders and labels that have none: a CSV or JSON file beside the data."""

from __future__ import annotations

import os

from adapt.data.readers.entries import read_entries
from adapt.errors import AdaptError
from adapt.shown import brief


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Names by class, from a `.csv` with the first line `class,name`, or a `.json` with an object `{class: name}`.

    Raises AdaptError, naming the entry, for a file of another form and for a class with two names.
    """
    where = f"Class names {os.fspath(path)!r}"
    names: dict[str, str] = {}
    for number, pair in enumerate(read_entries(os.fspath(path), where, ("class", "name")), 1):
        match pair:
            case [str(key), str(name)] if key and name and key not in names:
                names[key] = name
            case _:
                raise AdaptError(
                    f"{where}: entry {number} is {brief(pair)}; expected a class, given once, and its name."
                )
    return names
