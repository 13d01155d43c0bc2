"""Which test compares which stored key: `keys.toml`, held against what the tests read."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import published

FOLDER = Path(__file__).parent
TABLE: dict[str, dict[str, Any]] = tomllib.loads((FOLDER / "keys.toml").read_text(encoding="utf-8"))
EVERYWHERE: dict[str, str] = TABLE.pop("everywhere")  # keys that no test reads, in whichever case, with the reason


def places(name: str, key: str) -> list[str]:
    """Where the list has a key of a case: names of tests, `given`, `later` (what another test is given), `unread`."""
    later = [pattern for patterns in TABLE[name].get("later", {}).values() for pattern in patterns]
    found = [place for place, patterns in (TABLE[name] | {"later": later}).items() if _has(patterns, key)]
    return found or ["unread"] * _has(EVERYWHERE, key)


def tests(name: str) -> list[str]:
    """The tests that hold something against keys of a case, the one that reads all that is given first."""
    return [place for place in TABLE[name] if place not in ("given", "later", "unread")]


def faults(test: str, chosen: str | None) -> Iterator[str]:
    """What the running test should have read of its cases, or of the `chosen` one alone, and did not."""
    for name in [chosen] if chosen in TABLE else TABLE:
        if test not in tests(name):
            continue
        given = TABLE[name]["given"] if test == tests(name)[0] else TABLE[name].get("later", {}).get(test, [])
        used = published.USED[name]
        for key in published.keys(name):
            if _has(TABLE[name][test], key) and key not in used.compared:
                yield f"{test} compares nothing with {key} of {name}, and keys.toml says that it does"
            if _has(given, key) and key not in used.read:
                yield f"{test} does not read {key} of {name}, and keys.toml says that it is given"


def parameters(test: str) -> list[str] | None:
    """The cases that a test runs with, one by one; None where it runs with all of its own at once."""
    for path in FOLDER.glob("test_*.py"):
        function = getattr(importlib.import_module(path.stem), test, None)
        for mark in getattr(function, "pytestmark", []):
            if mark.name == "parametrize" and mark.args[0] in ("name", ("name", "prefix")):
                return [each[0] if isinstance(each, tuple) else each for each in mark.args[1]]
        if function is not None:
            return None
    raise AssertionError(f"keys.toml names {test}, and there is no such test")


def _has(patterns: Any, key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
