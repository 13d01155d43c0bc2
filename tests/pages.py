"""README and the pages of docs/: their Python snippets, command lines and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sybil import Document, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_SYBIL = Sybil([PythonCodeBlockParser(), SkipParser()])


def name(page: Path) -> str:
    """For the ids of tests."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


def document(page: Path) -> Document:
    """The page with its snippets, which share one namespace."""
    return _SYBIL.parse(page)


def command_lines(page: Path) -> Iterator[str]:
    """What the page shows to be typed: the lines of its blocks that begin with `adapt`."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("    adapt "):
            yield line.strip()


def commands_in_prose(page: Path) -> Iterator[str]:
    """Commands that the page speaks of, perhaps without all that they need."""
    for found in re.findall(r"`(adapt\s[^`]+)`", page.read_text(encoding="utf-8")):
        yield " ".join(found.split())


def links(page: Path) -> Iterator[str]:
    """The relative ones, of pictures too, without their anchors."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            yield target
