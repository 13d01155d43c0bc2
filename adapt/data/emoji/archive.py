"""The bundled emoji drawings: a zip beside this file, with an index."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from adapt.common.errors import AdaptError
from adapt.data.decoding.files import read_bytes, zip_root

ARCHIVE = Path(__file__).with_name("emoji.zip")
UNSEEN_STYLE = "fluent-3d"


DrawnItem = TypedDict(
    "DrawnItem",
    {"file": str, "concept": str, "class": str | None, "style": str, "split": str, "held_out": bool},
)


class DrawingIndex(TypedDict):
    """The contents of index.json in the zip: drawing styles, classes, and a `DrawnItem` for each drawing."""

    styles: list[str]
    classes: list[str]
    items: list[DrawnItem]


def index() -> DrawingIndex:
    """Return the index of the bundled drawings: "styles", "classes", and "items", one record for each drawing."""
    return _index(ARCHIVE)


@lru_cache(maxsize=2)
def _index(archive: Path) -> DrawingIndex:
    if not archive.is_file():
        raise AdaptError(f"the bundled data set {str(archive)!r} is missing: install adapt again")
    content: DrawingIndex = json.loads(read_bytes(zip_root(archive) + "index.json"))
    return content
