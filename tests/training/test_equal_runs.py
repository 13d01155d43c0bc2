"""Two equal runs write equal files, whatever they took and wherever they ran."""

from __future__ import annotations

import json
from pathlib import Path

import equal_runs
from selection import by_turns

from adapt.formats.adapter import read_header


@by_turns(("name", "kind"), equal_runs.CASES, take=6)
def test_two_equal_runs_write_the_same_adapter(name: str, kind: str, tmp_path: Path) -> None:
    first = equal_runs.digest(name, kind, tmp_path / "first")
    assert equal_runs.digest(name, kind, tmp_path / "second") == first
    kept = read_header(tmp_path / "first" / "adapter.safetensors").metrics
    measured = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert "seconds" not in kept
    assert measured["seconds"] >= 0
