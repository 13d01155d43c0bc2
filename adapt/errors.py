"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaptError(Exception):
    """A mistake in what the user gave. The message names the thing, its value, what was expected and what to do.

    The command line prints it as one line and exits with status 2.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for an unknown `word`: the closest valid choice if there is one, and all the choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(known)}"
