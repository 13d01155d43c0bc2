"""The stored cases: each is described, whole and used, and together they stay small."""

from __future__ import annotations

import re
from pathlib import Path

import published

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in published.CASES.glob("*.json"))


def test_each_case_is_described_and_has_both_files() -> None:
    [table] = re.findall(r"\| case \|.*?\n\n", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    described = [name for line in table.strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(described) == NAMES
    assert sorted(path.stem for path in published.CASES.glob("*.safetensors")) == NAMES
    assert len(list(published.CASES.iterdir())) == 2 * len(NAMES)


def test_each_case_is_used() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py"))
    assert [name for name in NAMES if f'"{name}"' not in tests] == []


def test_the_numbers_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 20 * 2**20
