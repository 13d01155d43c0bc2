"""CSV files of which one column are texts, such as captions."""

from __future__ import annotations

import csv
import io
import os

from adapt.cells import unguarded
from adapt.data.readers.lines import read_text
from adapt.errors import AdaptError


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The column `text`, whatever else there is. Raises AdaptError where there is none, or one is empty."""
    where = f"CSV {os.fspath(path)!r}"
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        texts = [unguarded((row.get("text") or "").strip()) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise AdaptError(f"{where} cannot be read: {error}.") from error
    if "text" not in (rows.fieldnames or ()):
        raise AdaptError(f"{where}: no column 'text'.")
    for number, text in enumerate(texts, 1):
        if not text:
            raise AdaptError(f"{where}: text {number} is empty.")
    return texts
