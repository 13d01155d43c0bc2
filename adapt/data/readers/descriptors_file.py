"""Class descriptors, short phrases on how a class looks, in a CSV or JSON file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.readers.names_file import read_entries

BUNDLED = {"emoji": Path(__file__).parent.parent / "emoji" / "descriptors.json"}


def read_descriptors(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Return {class: descriptors} from a file, or the bundled descriptors if `path` is the name of a bundled data set.

    A `.csv` file has the header `class,descriptor` and a line for each descriptor. A `.json` file has an object
    `{class: [descriptor, ...]}`. Raises AdaptError, naming the entry, for any other format, an empty descriptor, and a
    class that occurs twice in a `.json` file.
    """
    source = os.fspath(BUNDLED.get(os.fspath(path), path))
    where = f"descriptors {os.fspath(path)!r}"
    descriptors: dict[str, list[str]] = {}
    entries = read_entries(source, where, ("class", "descriptor"))
    for number, (name, phrases) in enumerate(_checked(entries, where, source.endswith(".csv")), 1):
        if name in descriptors and not source.endswith(".csv"):
            raise AdaptError(f"{where}: entry {number}: the class {name!r} is listed twice: list each class once")
        descriptors.setdefault(name, []).extend(phrases)
    try:
        plain.check(descriptors)
    except ValueError as error:
        raise AdaptError(f"{where}: {error}") from None
    return {name: tuple(phrases) for name, phrases in descriptors.items()}


def _checked(entries: Iterable[object], where: str, csv: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield (class, descriptors) of each entry. Raises AdaptError for an entry in any other format."""
    for number, entry in enumerate(entries, 1):
        match entry:
            case [str(name), str(phrase)] if csv and name.strip() and phrase.strip():
                yield name, [phrase]
            case [str(name), list(phrases)] if name.strip() and all(
                isinstance(phrase, str) and phrase.strip() for phrase in phrases
            ):
                yield name, phrases
            case _:
                expected = "its descriptor" if csv else "a list of its descriptors"
                raise AdaptError(
                    f"{where}: entry {number} is {brief(entry)}; expected a class and {expected}, none of them empty"
                )
