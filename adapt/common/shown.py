"""Text for people: untrusted text with what would control a terminal or a spreadsheet escaped, and sizes in words."""

from __future__ import annotations

import csv
import io
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
SEPARATOR = "|"  # between the names of several classes in one text
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_GUARDED = re.compile(r"''*[=+\-@\t\r\n]")

# control characters, lone surrogates (bytes that are not UTF-8), line and paragraph separators
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
# embeddings, overrides and isolates, which change the order in which text is displayed
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 200


def unseen(text: str) -> bool:
    """Return whether `text` has a character that breaks a line, controls a terminal, reorders text, or is invisible."""
    # the quick check is enough for almost all text
    return not text.isprintable() and any(
        letter in _TURNING or unicodedata.category(letter) in _UNSEEN for letter in text
    )


def shown(text: object) -> str:
    r"""Return `text` as one printable line, in which special characters are escaped, such as a newline as `\n`."""
    return "".join(repr(letter)[1:-1] if unseen(letter) else letter for letter in str(text))


def one_line(text: object) -> str:
    """Return `text` with every run of white space replaced by a single space."""
    return " ".join(str(text).split())


def first_of(names: Sequence[object], most: int = 5, between: str = ", ") -> str:
    """Return the first `most` names as text, followed by the number of remaining names, as in `a, b and 3 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(map(shown, names[:most])) + more


def brief(value: object) -> str:
    """Return the text `repr(value)`, shortened if the text is long or deeply nested."""
    return _brief.repr(value)


def spread(values: Sequence[int]) -> str:
    """Return the range of numbers in words, with the median: `2 to 8 (median 4)`."""
    from statistics import median_high  # which takes a while to import

    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,} to {most:,} (median {median_high(values):,})"


def readable_bytes(size: float) -> str:
    """Return a number of bytes as readable text, such as '1.5 KiB' for 1536."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def guarded(value: T) -> T | str:
    """Return `value` as a CSV cell, with an apostrophe before any text that a spreadsheet would run as a formula.

    A spreadsheet treats a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end as a formula, which may start a
    program. A text that already has apostrophes before such a character gets one more, so that `unguarded` restores
    every text exactly. Numbers are unchanged.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def unguarded(text: str) -> str:
    """Return the text of a CSV cell, without the apostrophe that `guarded` may have added."""
    return text[1:] if _GUARDED.match(text) else text


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of cells as CSV, with `guarded` texts."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(guarded, row) for row in rows)
    return text.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text == text.strip()
