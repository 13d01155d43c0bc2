"""Files that say something of each class: a CSV of two columns, or a JSON object."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from adapt.cells import unguarded
from adapt.data.readers.lines import read_text
from adapt.errors import AdaptError


def read_entries(source: str, where: str, columns: tuple[str, str]) -> list[Any]:
    """What the file at `source` says, an entry of a class and a value after the other; nothing of it is checked yet.

    A `.csv` has the first line `columns`, a `.json` an object of values by class. Raises AdaptError, which calls the
    file `where`, for a file of another form.
    """
    if not source.endswith((".csv", ".json")):
        raise AdaptError(f"{where} are neither a .csv nor a .json file.")
    try:
        text = read_text(source)
        return _from_csv(text, where, columns) if source.endswith(".csv") else _from_json(text, where, columns)
    # RecursionError: JSON with brackets in thousands
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise AdaptError(f"{where} cannot be read: {error}.") from error


def _from_csv(text: str, where: str, columns: tuple[str, str]) -> list[Any]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    first, *rows = [[unguarded(cell.strip()) for cell in row] for row in lines if row] or [[]]
    if first != list(columns):
        raise AdaptError(f"{where}: the first line is {','.join(first)!r}; expected {','.join(columns)!r}.")
    return rows


def _from_json(text: str, where: str, columns: tuple[str, str]) -> list[Any]:
    content = json.loads(text, object_pairs_hook=tuple)  # pairs, so that a key that stands twice is seen
    if not isinstance(content, tuple):
        raise AdaptError(f"{where}: expected an object {{{columns[0]}: {columns[1]}}}.")
    return list(content)
