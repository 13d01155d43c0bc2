"""Cells of CSV files that a spreadsheet shows and never runs.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a line's end for a formula, and a formula may
start a program. As spreadsheets have it, an apostrophe in front makes a text of it; our readers take it off again. A
text that has apostrophes before such a character gets one more, so that every text comes back as it was. Numbers stay.
"""

from __future__ import annotations

import re
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_GUARDED = re.compile(r"''*[=+\-@\t\r\n]")


def guarded(value: Any) -> Any:
    """What to write into a CSV for `value`."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def unguarded(text: str) -> str:
    """The text that `guarded` was given."""
    return text[1:] if _GUARDED.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text == text.strip()
