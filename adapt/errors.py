"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaptError(Exception):
    """A mistake in what the user gave. The message names the thing, its value, what was expected and what to do.

    The command line prints it as one line and exits with status 2.
    """


_LISTED = 16  # so many choices are all shown; of more, the nearest few


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for an unknown `word`: the closest valid choice if there is one, and the choices, of many the nearest."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(known) <= _LISTED:
        return f"{hint}Valid: {', '.join(known)}"
    few = difflib.get_close_matches(word, known, n=5, cutoff=0.4) or known[:5]
    return f"{hint}Of {len(known)} that are valid: {', '.join(few)}"
