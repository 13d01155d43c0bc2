"""The papers' few-shot and zero-shot figures beside what was measured with adapt, for a directive of the site.

What was measured stands in `measured/*.json`, the output of `adapt verify --json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapt.protocols import papers

MEASURED = Path(__file__).parent / "measured"
SHOTS = "16"
_HEADER = ["| backbone | data | method | published | measured | command |", "|---|---|---|---|---|---|"]


def table() -> str:
    """Return a table in Markdown with a row for each figure that `adapt verify` compares."""
    measured = _measured()
    return "\n".join([*_HEADER, *(_row(row, value, measured) for row, value in figures())])


def figures() -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of papers.toml that an official file confirms, each with its figure: zero-shot, or at 16 shots."""
    for row in papers.rows():
        if row["protocol"] in (papers.ZERO_SHOT, papers.FEW_SHOT) and row["from"] == "F":
            for column, value in row["values"].items():
                if column in ("test", SHOTS) and "~" not in value:  # read off a plot
                    yield row, value


def _measured() -> dict[tuple[str, str, str, str], float]:
    """Return accuracies by backbone, data set, method and published figure."""
    runs: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in MEASURED.glob("*.json")]
    return {
        (run["published_backbone"], run["data"], pair["method"], f"{pair['published']:.2f}"): pair["here"]
        for run in runs
        for pair in run["compared"]
    }


def _row(row: dict[str, Any], value: str, measured: dict[tuple[str, str, str, str], float]) -> str:
    backbone, data, recipe = row["backbone"], row["data"], papers.recipe_of(row["method"])
    title = f"{recipe}, shots: {SHOTS}" if recipe else row["method"]  # as `adapt verify` writes it
    options = f" --recipe {recipe} --out runs/{data}/{recipe}" if recipe else ""
    command = f"adapt verify {papers.backbones()[backbone][0]} --data {data} --root data{options}"
    here = measured.get((backbone, data, title, f"{float(value):.2f}"))
    cells = (backbone, data, row["method"], value, "" if here is None else f"{here:.2f}")
    return f"| {' | '.join(cells)} | `{command}` |"
