"""Empty image files for the tests of the readers, and the items that they list."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from adapt.data import Item


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
