"""Packages of other people, as pip leaves them, outside this repository."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapt import tasks
from adapt.recipe.shipped import known_recipes

Install = Callable[[str, str, str], None]  # a package's name, its source, and what its entry points say


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts packages on Python's path for one test."""
    site, known = tmp_path / "site", list[str]()

    def package(name: str, source: str, points: str) -> None:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(source)
        about = site / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(points)
        known.append(name)
        _forget()

    monkeypatch.syspath_prepend(str(site))
    yield package
    for name in known:
        sys.modules.pop(name, None)
    _forget()


def _forget() -> None:
    tasks.reading.cache_clear()
    known_recipes.cache_clear()
