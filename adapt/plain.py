"""Functions that parse and write JSON strictly, with limits on its content."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from adapt.errors import AdaptError

T = TypeVar("T")

DEPTH = 32  # the deepest nesting of lists and objects
TEXT = 1000  # the most characters of a setting; tokenizers take quadratic time for a long word
NAMES = 25_000  # class names; ImageNet-21k has 21,841, and a small text tower encodes about a thousand per second
_LARGEST = 2**63


def parse(text: str | bytes, most: int | None = None) -> Any:
    """Parse JSON strictly; strings may have any length.

    Raises ValueError for invalid JSON, NaN, Infinity, a duplicate key, or data that `check` refuses.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        check(value, longest=None, most=most)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def dump(value: object, indent: int | None = None) -> str:
    """Return `value` as strict JSON text. Raises AdaptError if a number in it is not finite."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False, separators=None if indent else (",", ":"))
    except ValueError as error:
        raise AdaptError(f"a result is not finite, and JSON has no name for that ({error})") from error


def within(value: object, *keys: str, kind: type[T]) -> T | None:
    """Return the value under nested `keys` in untrusted JSON data, or None if it is missing or not of type `kind`."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else None


def leaves(values: Mapping[str, object], joint: str = ".") -> Iterator[tuple[str, object]]:
    """Yield the innermost values of nested mappings, each with the keys that lead to it, joined as in `train.lr`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{joint}{inner}", leaf) for inner, leaf in leaves(value, joint))
        else:
            yield key, value


def check(value: object, longest: int | None = TEXT, most: int | None = None, depth: int = DEPTH) -> None:
    """Raise ValueError for JSON data that is nested too deeply, or has more than `most` values in a list or object.

    Strings over `longest` characters and integers beyond 64 bits are refused too.
    """
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise ValueError("it is nested too deeply")
        if most is not None and len(value) > most:
            raise ValueError(f"a list or an object of {len(value):,} values; expected at most {most:,}")
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        for each in inside:
            check(each, longest, most, depth - 1)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"a whole number of {value.bit_length()} bits; expected at most 64")
    elif isinstance(value, str) and longest is not None and len(value) > longest:
        raise ValueError(f"a text of {len(value):,} characters; expected at most {longest:,}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key appears twice in it")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value
