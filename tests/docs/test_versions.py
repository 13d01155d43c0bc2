"""Versions of the site beside each other, and the table of published figures."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pages
import pytest

DOCS = pages.ROOT / "docs"


def built(site: Path, *names: str) -> dict[str, Any]:
    """A site with a version of each name, as versions.py lists it."""
    for name in names:
        (site / name / "reference").mkdir(parents=True)
        (site / name / "index.html").write_text("")
        (site / name / "reference" / "data.html").write_text("")
    versions = runpy.run_path(str(DOCS / "versions.py"))
    versions["write"](site)
    listed: dict[str, Any] = json.loads((site / "versions.js").read_text().split("=", 1)[1].rstrip(";\n"))
    return listed


def test_versions_are_listed_from_the_newest_and_the_newest_release_opens(tmp_path: Path) -> None:
    (tmp_path / "_static").mkdir()
    listed = built(tmp_path, "0.9.0", "0.10.0", "0.11.0a1")
    assert list(listed) == ["0.11.0a1", "0.10.0", "0.9.0"]
    assert listed["0.9.0"] == ["index.html", "reference/data.html"]
    assert 'content="0; 0.10.0/index.html"' in (tmp_path / "index.html").read_text()


def test_a_version_without_pages_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "0.2.0").mkdir()
    assert list(built(tmp_path, "0.1.0a1")) == ["0.1.0a1"]
    assert "0.1.0a1/index.html" in (tmp_path / "index.html").read_text()


def test_figures_that_somebody_measured_stand_beside_the_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import published_figures

    from adapt.protocols import papers

    pair = {"method": "tip_adapter/few_shot, shots: 16", "published": 66.85, "here": 66.9123}
    run = {"published_backbone": "RN50", "data": "sun397", "compared": [pair]}
    (tmp_path / "one.json").write_text(json.dumps(run))
    monkeypatch.setattr(published_figures, "MEASURED", tmp_path)
    [row] = [
        row for row in papers.rows()
        if (row["method"], row["data"], row["protocol"]) == ("Tip-Adapter", "sun397", papers.FEW_SHOT)
    ]  # fmt: skip
    shown = published_figures._row(row, row["values"]["16"], published_figures._measured())
    command = "adapt verify open_clip:RN50-quickgelu/openai --data sun397 --root data --recipe tip_adapter/few_shot"
    assert (
        shown == f"| RN50 | sun397 | Tip-Adapter | 66.85 | 66.91 | `{command} --out runs/sun397/tip_adapter/few_shot` |"
    )


def test_what_was_measured_stands_beside_a_published_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in docs/measured, of which there may be none, fills a cell of the page."""
    monkeypatch.syspath_prepend(str(DOCS))
    import published_figures

    shown = {published_figures._row(*each, {}).rpartition("|  |")[0] for each in published_figures.figures()}
    for backbone, data, _, published in published_figures._measured():
        assert any(f"| {backbone} | {data} |" in row and f"| {published} " in f"{row} " for row in shown)
