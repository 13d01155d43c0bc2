"""Files (CSV or JSON) with readable names for the classes of a data set, or with short phrases on how a class looks."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from adapt.common import plain
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


BUNDLED = {"emoji": Path(__file__).parent.parent / "emoji" / "descriptors.json"}


def read_descriptors(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Return {class: descriptors} from a file, or the bundled descriptors if `path` is the name of a bundled data set.

    A `.csv` file has the header `class,descriptor` and a line for each descriptor. A `.json` file has an object
    `{class: [descriptor, ...]}`. Raises AdaptError, naming the entry, for any other format, an empty descriptor, and a
    class that occurs twice in a `.json` file.
    """
    source = os.fspath(BUNDLED.get(os.fspath(path), path))
    where = f"descriptors {os.fspath(path)!r}"
    descriptors: dict[str, list[str]] = {}
    entries = read_entries(source, where, ("class", "descriptor"))
    csv_file = source.endswith(".csv")
    for number, entry in enumerate(entries, 1):
        match entry:
            case [str(name), str(phrase)] if csv_file and name.strip() and phrase.strip():
                phrases = [phrase]
            case [str(name), list(phrases)] if name.strip() and all(
                isinstance(phrase, str) and phrase.strip() for phrase in phrases
            ):
                pass
            case _:
                expected = "its descriptor" if csv_file else "a list of its descriptors"
                raise AdaptError(
                    f"{where}: entry {number} is {brief(entry)}; expected a class and {expected}, none of them empty"
                )
        if name in descriptors and not csv_file:
            raise AdaptError(f"{where}: entry {number}: the class {name!r} is listed twice: list each class once")
        descriptors.setdefault(name, []).extend(phrases)
    try:
        plain.check(descriptors)
    except ValueError as error:
        raise AdaptError(f"{where}: {error}") from None
    return {name: tuple(phrases) for name, phrases in descriptors.items()}
