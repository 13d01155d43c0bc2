"""Functions that parse and write JSON strictly, with limits on its content."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from adapt.common.errors import AdaptError

JsonObject = dict[str, Any]  # texts, numbers, lists and further objects, by name
T = TypeVar("T")

DEPTH = 32  # the deepest nesting of lists and objects
TEXT = 1000  # the most characters of a setting; tokenizers take quadratic time for a long word
NAMES = 25_000  # class names; ImageNet-21k has 21,841, and a small text tower encodes about a thousand per second
_LARGEST = 2**63


def parse(text: str | bytes, most: int | None = None) -> Any:
    """Parse JSON text strictly, with no limit on the length of strings.

    Raises ValueError for invalid JSON, NaN, Infinity, a duplicate key, or data that `check` rejects.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        check(value, longest=None, most=most)
    except RecursionError:
        raise ValueError(f"the data is nested too deeply; expected at most {DEPTH} levels") from None
    return value


def dump(value: object, indent: int | None = None) -> str:
    """Return `value` as strict JSON text. Raises AdaptError if `value` contains NaN or infinity."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False, separators=None if indent else (",", ":"))
    except ValueError as error:
        raise AdaptError(f"a result is NaN or infinite, which JSON cannot represent ({error})") from error


def within(value: object, *keys: str, kind: type[T]) -> T | None:
    """Return the value under nested `keys` in untrusted JSON data, or None if there is no value of type `kind`."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else None


def leaves(values: Mapping[str, object], joint: str = ".") -> Iterator[tuple[str, object]]:
    """Yield a pair of dotted key, such as `train.lr`, and value for each innermost value of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{joint}{inner}", leaf) for inner, leaf in leaves(value, joint))
        else:
            yield key, value


def check(value: object, longest: int | None = TEXT, most: int | None = None, depth: int = DEPTH) -> None:
    """Raise ValueError for JSON data that is nested too deeply, or has more than `most` values in a list or object.

    Strings of more than `longest` characters and integers beyond 64 bits also raise ValueError.
    """
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise ValueError(f"the data is nested too deeply; expected at most {DEPTH} levels")
        if most is not None and len(value) > most:
            raise ValueError(f"a list or an object has {len(value):,} values; expected at most {most:,}")
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        for each in inside:
            check(each, longest, most, depth - 1)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"an integer has {value.bit_length()} bits; expected at most 64")
    elif isinstance(value, str) and longest is not None and len(value) > longest:
        raise ValueError(f"a text has {len(value):,} characters; expected at most {longest:,}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key appears twice in an object")
    return values


def _finite(text: str) -> float:
    value = float(text)  # which may be the name of a constant, such as NaN
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is not allowed in JSON; expected a finite number")
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large; expected a 64-bit float")
    return value
