"""The papers' own figures: published.toml, looked up by protocol and data set."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from adapt.data import published as data_sets

TABLE = Path(__file__).with_name("published.toml")


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """All rows: protocol, data, method, from, and values by column, as text."""
    found = tomllib.loads(TABLE.read_text(encoding="utf-8"))["row"]
    return tuple(found)


def figures_for(results: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Titles and values by column for a protocol's results; none where its data are not of the papers."""
    name = _data_set(results["recipe"]["data"]["source"])
    return [
        (f"{row['method']}, published [{row['from']}]", row["values"])
        for row in rows()
        if (row["protocol"], row["data"]) == (results["protocol"], name)
    ]


def _data_set(source: str) -> str | None:
    """The data set's name here, of a name or of the path of its split file."""
    stem = Path(source).name.split(".")[0].removeprefix("split_zhou_")
    entry = data_sets.find(source) or data_sets.find(stem)
    return None if entry is None else entry.name
