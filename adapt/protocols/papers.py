"""The papers' own figures: published.toml, looked up by protocol and data set."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from adapt.data.readers import published as data_sets

TABLE = Path(__file__).with_name("papers.toml")


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """All rows: protocol, data, method, from, and values by column, as text."""
    found = tomllib.loads(TABLE.read_text(encoding="utf-8"))["row"]
    return tuple(found)


def figures_for(results: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Titles and values by column for a protocol's results; none where its data are not of the papers."""
    name = data_set(results["recipe"]["data"]["source"])
    return [
        (f"{row['method']}, published [{row['from']}] (ViT-B/16)", row["values"])
        for row in rows()
        if (row["protocol"], row["data"]) == (results["protocol"], name)
    ]


def data_set(source: str) -> str | None:
    """The name here of a published data set, given by name or as its split file (`split_zhou_EuroSAT.json`)."""
    stem = Path(source).name.removesuffix(".gz").removesuffix(".json")
    is_split_file = source.endswith((".json", ".json.gz")) and stem.startswith("split_zhou_")
    entry = data_sets.find(stem.removeprefix("split_zhou_") if is_split_file else source)
    return None if entry is None else entry.name
