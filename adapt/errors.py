"""The exception for users' mistakes, and hints for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaptError(Exception):
    """A mistake in what the user gave. The message names the thing, its value, what was expected and what to do.

    The command line prints it as one line and exits with status 2.
    """


def missing(what: str, library: str, extra: str) -> AdaptError:
    """Return the error that `what` needs `library`, which the extra named `extra` installs."""
    return AdaptError(f'{what} needs {library}: pip install "adapt-vlm[{extra}]"')


_LISTED = 12  # choices that are all listed; of more, only the nearest few


def nearest(word: str, choices: Iterable[str], listed_by: str = "") -> str:
    """Return a hint for an unknown `word`: the closest valid choice if one is near, and all choices if they are few.

    `listed_by`, such as "`adapt recipes`", is named as what lists the choices if they are many and none is near.
    """
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(known) <= _LISTED:
        return f"{hint}Valid: {', '.join(known)}"
    if close:
        near = [each for each in difflib.get_close_matches(word, known, n=5, cutoff=0.4) if each not in close]
        return f"{hint}" + (f"Also near: {', '.join(near)}" if near else f"(one of {len(known)})")
    return f"none of the {len(known)} valid names is near it" + (f": {listed_by} lists them" if listed_by else "")
