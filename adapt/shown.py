"""Text of others as one line of ours: what would break a line, or steer a terminal, is found or written out."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence
from typing import Any

# controls, lone surrogates (bytes that are no UTF-8), separators of lines and of paragraphs
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
# embeddings, overrides and isolates, by which what follows reads in another order than it stands in
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 200


def unseen(text: str) -> bool:
    """Whether `text` holds a character that breaks a line, steers a terminal, turns text round, or has no form."""
    # printable text, nearly all, is known at once
    return not text.isprintable() and any(
        letter in _TURNING or unicodedata.category(letter) in _UNSEEN for letter in text
    )


def shown(text: object) -> str:
    r"""`text` on one line: a newline as `\n`, an escape as `\x1b`, and so on; all else as it is."""
    return "".join(repr(letter)[1:-1] if unseen(letter) else letter for letter in str(text))


def one_line(text: object) -> str:
    """What somebody else says in several lines, on one."""
    return " ".join(str(text).split())


def first_of(names: Sequence[object], most: int = 5) -> str:
    """`a, b and 3 more`: the first of `names`, at most so many, and how many there are besides."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def brief(value: Any) -> str:
    """`repr(value)`, cut where it is long or deep: what a file holds may be both."""
    return _brief.repr(value)
