"""The exception for users' mistakes, and the hints that its messages give."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from adapt.common.shown import one_line


class AdaptError(Exception):
    """An error caused by the user. The message gives the wrong name and value, what was expected, and what to do.

    The command line prints the message as one line and exits with status 2.
    """


def missing(what: str, library: str, extra: str) -> AdaptError:
    """Return an AdaptError saying that `what` needs `library`, with the pip command for adapt's extra `extra`."""
    return AdaptError(f'{what} needs {library}: pip install "adapt-vlm[{extra}]"')


def check_installed(what: str, extra: str, *libraries: str) -> None:
    """Raise AdaptError, before any long work is done, if a library of an extra that `what` needs is not installed."""
    if absent := [name for name in libraries if find_spec(name) is None]:
        raise missing(what, ", ".join(absent), extra)


@contextmanager
def needing(what: str, library: str, extra: str) -> Iterator[None]:
    """Raise the error of `missing` if what the `with` block imports is not installed."""
    try:
        yield
    except ImportError:
        raise missing(what, library, extra) from None


@contextmanager
def about(what: str) -> Iterator[None]:
    """Put `what` it is about before the message of an AdaptError in the `with` block."""
    try:
        yield
    except AdaptError as error:
        raise AdaptError(f"{what}: {error}") from error


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Append the message of an AdaptError in the `with` block, which then ends, to `problems`."""
    try:
        yield
    except AdaptError as error:
        problems.append(str(error))


@contextmanager
def unpanicked(what: str) -> Iterator[None]:
    """Turn a panic of a library in Rust, such as a tokenizer, in the `with` block into an AdaptError about `what`.

    It is no `Exception`: for example, a pattern took too many steps.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise AdaptError(f"{what}: {one_line(error)}") from None


_LISTED = 12  # choices that are all listed; of more, only the nearest few


def nearest(word: str, choices: Iterable[str], listed_by: str = "") -> str:
    """Return a hint for an unknown `word`: the most similar valid choice if any, and all choices if there are few.

    If there are many choices and none is similar, the hint names the command `listed_by` that lists all choices, such
    as "`adapt recipes`".
    """
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(known) <= _LISTED:
        return f"{hint}Valid: {', '.join(known)}"
    if close:
        near = [each for each in difflib.get_close_matches(word, known, n=5, cutoff=0.4) if each not in close]
        return f"{hint}" + (f"Also near: {', '.join(near)}" if near else f"(one of {len(known)})")
    return f"none of the {len(known)} valid names is similar" + (f": {listed_by} lists them" if listed_by else "")
