"""Empty image files for the tests of the readers, and the items that they list."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from adapt.data import Item, Split
from adapt.data.split import PARTS
from adapt.tasks import Label


def touch(root: Path, *names: str) -> Path:
    """Empty files below `root`: the readers open no image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def relative(items: Iterable[Item], root: Path) -> list[str]:
    """Where the items' files lie below `root`."""
    return [os.path.relpath(item.path, root) for item in items]


def told(label: Label) -> str:
    """The number of a label, or the names of its classes: none for an image without a label."""
    value = getattr(label, "value", None)
    return str(value) if value is not None else "|".join(sorted(label.class_names))


def as_read(split: Split, root: Path) -> set[tuple[str, str, str]]:
    """Part, label and path below `root` of each item; "" for the part where the reader divides the data."""
    return {
        (
            part if split.ratios is None or part == "unlabelled" else "",
            told(item.label),
            os.path.relpath(item.path, root),
        )
        for part in PARTS
        for item in getattr(split, part)
    }
