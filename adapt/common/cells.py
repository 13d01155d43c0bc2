"""Cells of CSV files, escaped so that a spreadsheet does not run them as formulas.

A spreadsheet treats a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end as a formula, which may start a
program. An apostrophe in front makes the cell text; our readers remove the apostrophe again. A text that already has
apostrophes before such a character gets one more, so that every text is restored exactly. Numbers are unchanged.
"""

from __future__ import annotations

import re
from typing import TypeVar

T = TypeVar("T")
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_GUARDED = re.compile(r"''*[=+\-@\t\r\n]")


def guarded(value: T) -> T | str:
    """Return `value` as a CSV cell, with an apostrophe before any text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def unguarded(text: str) -> str:
    """Return the text of a CSV cell, without the apostrophe that `guarded` may have added."""
    return text[1:] if _GUARDED.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text == text.strip()
