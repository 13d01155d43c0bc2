"""Text files with an entry on each line."""

from __future__ import annotations

from pathlib import Path

from adapt.errors import AdaptError


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty, without the space around them. Raises AdaptError where there is no such text."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise AdaptError(f"List {str(path)!r} cannot be read: {error}.") from error
