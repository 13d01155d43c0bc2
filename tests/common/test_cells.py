"""Cells of CSV files: no formulas, and the text that was given."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.common.disk import write_csv
from adapt.common.shown import guarded, unguarded
from adapt.data import read_csv

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"),
        ("+1+cmd", "'+1+cmd"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("'=1", "''=1"),
        ("'tis", "'tis"),
        ("-0.5", "-0.5"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_what_is_written(text: str, cell: str) -> None:
    assert guarded(text) == cell
    assert unguarded(cell) == text


def test_numbers_stay() -> None:
    assert [guarded(value) for value in (-1, -0.5, None)] == [-1, -0.5, None]


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(alphabet="'=+-@\t\r\n1e ab") | st.text())
def test_every_text_comes_back_and_none_is_a_formula(text: str) -> None:
    cell = guarded(text)
    assert unguarded(cell) == text
    if cell.startswith(_STARTS):
        float(cell)


def test_a_list_that_we_write_is_read_as_it_was(tmp_path: Path) -> None:
    rows = [{"path": "@x/=1.png", "label": "=cmd|'/c calc'!A1"}, {"path": "b.png", "label": "'=b"}]
    write_csv(tmp_path / "list.csv", rows)
    assert "\n'@x/=1.png,'=cmd|'/c calc'!A1\nb.png,''=b\n" in (tmp_path / "list.csv").read_text()
    split = read_csv(tmp_path / "list.csv")
    assert [(item.path, item.answer) for item in split.items()] == [
        (str(tmp_path / row["path"]), row["label"]) for row in rows
    ]
    with (tmp_path / "list.csv").open(newline="") as file:
        assert all(not cell.startswith(_STARTS) for row in csv.reader(file) for cell in row)
