"""Every notebook is stored with what it shows, and runs from top to bottom."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_notebook_is_stored_executed_and_small(path: Path) -> None:
    assert path.stat().st_size < 400 * 1024
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    told = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.findall(r"\S*(?:site-packages|/home/|/root/|/tmp/|/Users/)\S*", told) == []


@each_notebook
@pytest.mark.parametrize("there", [True, False])
def test_the_first_cell_installs_on_colab_and_does_nothing_elsewhere(
    path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert first.outputs == []
    assert "import adapt\n" in second.source
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if there:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell, found = InteractiveShell(), list[str]()
    monkeypatch.setattr(shell, "run_line_magic", lambda magic, line, **_: found.append(f"{magic} {line}"))
    shell.run_cell(first.source).raise_error()
    packages = '"adapt-vlm[lite,plot]" scikit-image' if path.stem == "photographs" else '"adapt-vlm[plot]"'
    assert found == ([f"pip install --quiet {packages}"] if there else [])


@pytest.mark.full
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=pytest.mark.at_length if path.stem in ("lora_das", "native", "vlora") else (), id=path.stem
        )
        for path in NOTEBOOKS
    ],
)
def test_notebook_runs(path: Path) -> None:
    """To the figures that it is stored with: every share in per cent, to two points on another processor."""
    notebook = nbformat.read(path, as_version=4)
    stored = [_shares(cell) for cell in notebook.cells]

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shares = [_shares(cell) for cell in notebook.cells]
    assert list(map(len, shares)) == list(map(len, stored))
    for fresh, kept in zip(shares, stored, strict=True):
        assert fresh == pytest.approx(kept, abs=2)


def _shares(cell: nbformat.NotebookNode) -> list[float]:
    told = "".join(output.get("text", "") for output in cell.get("outputs", []))
    return [float(share) for share in re.findall(r"([\d.]+) %", told)]
