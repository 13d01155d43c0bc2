"""Plain data that came out of a file: JSON that is read and written strictly, and bounds on what it may hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from adapt.errors import AdaptError

DEPTH = 32  # of lists and objects inside one another
TEXT = 1000  # characters of one setting; tokenizers take quadratic time for a word
NAMES = 25_000  # of classes; ImageNet-21k has 21,841, and a small text tower encodes about a thousand a second
_LARGEST = 2**63


def parse(text: str | bytes, most: int | None = None) -> Any:
    """What JSON says. ValueError where it is no JSON, has NaN, Infinity or a key twice, or is more than `check` allows.

    A text may be of any length.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        check(value, longest=None, most=most)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def dump(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes. AdaptError where a number in it is not finite."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False, separators=None if indent else (",", ":"))
    except ValueError as error:
        raise AdaptError(f"a result is not finite, and JSON has no name for that ({error})") from error


def within(value: Any, *keys: str, kind: type) -> Any:
    """What stands under `keys` in plain data that anybody may have written, or None where nothing of `kind` does."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else None


def leaves(values: Mapping[str, Any], joint: str = ".") -> Iterator[tuple[str, Any]]:
    """What stands inside objects inside objects, under their keys joined, such as `train.lr`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{joint}{inner}", leaf) for inner, leaf in leaves(value, joint))
        else:
            yield key, value


def check(value: Any, longest: int | None = TEXT, most: int | None = None, depth: int = DEPTH) -> None:
    """ValueError for lists and objects nested too deep, or of more than `most` values, and for what is too long.

    That is a whole number beyond 64 bits, and a text over `longest`.
    """
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise ValueError("it is nested too deep")
        if most is not None and len(value) > most:
            raise ValueError(f"a list or an object of {len(value):,} values; expected at most {most:,}")
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        for each in inside:
            check(each, longest, most, depth - 1)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"a whole number of {value.bit_length()} bits; expected at most 64")
    elif isinstance(value, str) and longest is not None and len(value) > longest:
        raise ValueError(f"a text of {len(value):,} characters; expected at most {longest:,}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in it")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the largest number")
    return value
