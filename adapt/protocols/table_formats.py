"""The formats of tables: text for a terminal, Markdown, CSV as shown, CSV of plain numbers, and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adapt.common.shown import guarded

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


class Value(NamedTuple):
    """A figure in [0, 1]: the mean of `runs` runs, and their standard deviation (n - 1) if there are several."""

    mean: float
    std: float | None = None
    runs: int = 1

    def __str__(self) -> str:
        mean = f"{100 * self.mean:.1f}"
        return mean if self.std is None else f"{mean} ± {100 * self.std:.1f}"

    def behind(self, other: Value) -> bool:
        """Return whether this figure is lower than `other` by more than one standard error of the difference."""
        variance = sum((each.std or 0.0) ** 2 / each.runs for each in (self, other))
        return other.mean - self.mean > variance**0.5


TableRow = Sequence[str | Value]
Cells = Sequence[TableRow]  # the first row is the header; an empty row separates blocks


def as_text(cells: Cells) -> str:
    """Return a table as text with aligned columns, for a terminal."""
    rows = [list(map(str, row)) for row in cells]
    widths = [max(len(row[i]) for row in rows if row) for i in range(len(rows[0]))]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) if row else "" for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(cells: Cells) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in cells if row]
    return "\n".join([lines[0], "| --- " * len(cells[0]) + "|", *lines[1:]])


def as_csv(cells: Cells) -> str:
    """Return a table as CSV, in which cells that a spreadsheet would run as formulas are escaped."""
    return _csv([[str(cell) for cell in row] for row in cells if row])


def as_numbers(cells: Cells) -> str:
    """Return a table as CSV of plain numbers, in per cent, with columns of their own for the deviation and the runs.

    The standard deviation is that of a sample (n - 1).
    """
    header, *rows = [row for row in cells if row]
    columns = [place for place in range(len(header)) if any(isinstance(row[place], Value) for row in rows)]
    head = [
        each
        for place, title in enumerate(header)
        for each in ([f"{title} mean", f"{title} std (n-1)", f"{title} runs"] if place in columns else [str(title)])
    ]
    return _csv(
        [head, *([text for place, cell in enumerate(row) for text in _parts(cell, place in columns)] for row in rows)]
    )


def _parts(cell: str | Value, number: bool) -> list[str]:
    """Return what stands in the columns of a cell: one, or three for a mean, a deviation and a number of runs."""
    if not isinstance(cell, Value):
        return [cell, "", ""] if number else [cell]
    std = "" if cell.std is None else f"{100 * cell.std:.4f}"
    return [f"{100 * cell.mean:.4f}", std, str(cell.runs)]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(guarded, row) for row in rows)
    return text.getvalue().rstrip("\n")


def as_latex(cells: Cells) -> str:
    """Return a table in LaTeX, which needs the package booktabs.

    In each column of a block the best figure is bold, and so are those that are not behind it by more than one standard
    error of the difference.
    """
    header, *rows = cells
    latex_row = "{} \\\\".format
    titles = latex_row(" & ".join(_escaped(str(cell)) for cell in header))
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", titles, r"\midrule"]
    for number, block in enumerate(_blocks(rows)):
        lines += [r"\midrule"] * (number > 0)
        columns = [[cell for cell in column if isinstance(cell, Value)] for column in zip(*block, strict=True)]
        best = [max(column, key=lambda value: value.mean, default=None) for column in columns]
        lines += [latex_row(" & ".join(_bold(cell, top) for cell, top in zip(row, best, strict=True))) for row in block]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _blocks(rows: Cells) -> Iterator[list[TableRow]]:
    block: list[TableRow] = []
    for row in [*rows, []]:
        if row:
            block.append(row)
        elif block:
            yield block
            block = []


def _bold(cell: str | Value, best: Value | None) -> str:
    shown = _escaped(str(cell))
    if not isinstance(cell, Value) or best is None or cell.behind(best):
        return shown
    mean, _, spread = shown.partition(" ")
    return f"\\textbf{{{mean}}} {spread}".rstrip()


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^±&%$#_{}]", lambda match: _SPECIAL[match[0]], text)


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "numbers": as_numbers, "latex": as_latex}
