"""README stays short, links lead somewhere, and what is public has its place in the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

import adapt
from adapt import methods
from adapt.formats.header import Header


def test_readme_is_short() -> None:
    assert len((pages.ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in pages.links(page) if not (page.parent / link).exists()] == []


def test_the_layout_is_that_of_the_design() -> None:
    layout = (pages.ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## Layout")[2]
    listed = re.findall(r"^\| `([^`]+)`", layout.partition("\n## ")[0], flags=re.MULTILINE)
    assert len(listed) > 10
    assert [path for path in listed if not (pages.ROOT / path).exists()] == []


@pytest.mark.parametrize(("module", "page"), [(adapt, "reference"), (adapt.data, "reference/data")])
def test_public_names_are_in_the_reference(module: object, page: str) -> None:
    words = set(re.findall(r"\w+", (pages.ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    assert set(module.__all__) - words == set()  # type: ignore[attr-defined]


def test_the_keys_of_the_header_are_listed() -> None:
    text = (pages.ROOT / "docs" / "adapter_file.md").read_text(encoding="utf-8")
    assert [key for key in Header.model_fields if f"`{key}`" not in text] == []


@pytest.mark.parametrize(("page", "place"), [("README.md", r"^\|.*`{}`.*\|$"), ("docs/methods.md", r"^\| `{}` ")])
def test_every_method_is_listed(page: str, place: str) -> None:
    text = (pages.ROOT / page).read_text(encoding="utf-8")
    assert [name for name in methods.names() if not re.search(place.format(name), text, re.MULTILINE)] == []
