"""README is short, links resolve, every page is on the site, and every public name is in the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest

import adapt
from adapt import methods
from adapt.formats.adapter import Header

DOCS = pages.ROOT / "docs"
CARDS = sorted((pages.ROOT / "checkpoints").glob("*/README.md"))
OF_SPHINX = {"genindex", "modindex", "py-modindex", "search"}  # pages that Sphinx writes itself, over ours of that name


def test_readme_is_short() -> None:
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    assert [line for line in text.splitlines() if len(line) > 140] == []


@pytest.mark.parametrize("page", [*pages.PAGES, *CARDS], ids=pages.name)
def test_links_resolve(page: Path) -> None:
    assert [link for link in pages.links(page) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_to_a_heading_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^):\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert [f"{path.name}#{anchor}" for path, anchor in targets if anchor not in anchors(path)] == []


def anchors(page: Path) -> set[str]:
    """Return what links call the headings of a page."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def headings(page: Path, marks: str = "#+") -> list[str]:
    """Return the headings of a page that begin with these marks, without those of its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^{marks} (.+)$", text, flags=re.MULTILINE)


def listed_on_the_site(page: Path = DOCS / "index.md") -> Iterator[Path]:
    """Yield the pages of the sidebar, by the toctrees of a page and of those below it."""
    text = page.read_text(encoding="utf-8")
    for toctree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for entry in toctree.split("\n"):
            if entry and not entry.startswith(":"):
                below = page.parent / f"{entry}.md"
                yield below
                yield from listed_on_the_site(below)


def test_every_page_is_on_the_site_under_its_own_title() -> None:
    sources = sorted(set(DOCS.rglob("*.md")) - {DOCS / "index.md"})
    assert sorted(listed_on_the_site()) == sources  # once each, by its file name alone
    titles = [headings(page, "#") for page in sources]
    assert [page.name for page, title in zip(sources, titles) if len(title) != 1] == []
    assert len({title for [title] in titles}) == len(titles)
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in sources} & OF_SPHINX == set()


def test_the_layout_is_that_of_the_design() -> None:
    layout = (DOCS / "design.md").read_text(encoding="utf-8").partition("## Layout")[2]
    listed = re.findall(r"^\| `([^`]+)`", layout.partition("\n## ")[0], flags=re.MULTILINE)
    assert len(listed) > 10
    assert [path for path in listed if not (pages.ROOT / path).exists()] == []


@pytest.mark.parametrize(("module", "page"), [(adapt, "reference"), (adapt.data, "reference/data")])
def test_public_names_are_in_the_reference(module: object, page: str) -> None:
    words = set(re.findall(r"\w+", (DOCS / f"{page}.md").read_text(encoding="utf-8")))
    assert set(module.__all__) - words == set()  # type: ignore[attr-defined]


def test_the_keys_of_the_header_are_listed() -> None:
    text = (DOCS / "adapter_file.md").read_text(encoding="utf-8")
    assert [key for key in Header.model_fields if f"`{key}`" not in text] == []


@pytest.mark.parametrize("place", [r"^\| `{}` ", r"^\| [a-z].*`{}`.*\|$"], ids=["with its paper", "by its task"])
def test_every_method_is_listed(place: str) -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert [name for name in methods.names() if not re.search(place.format(name), text, re.MULTILINE)] == []
