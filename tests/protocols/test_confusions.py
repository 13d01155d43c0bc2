"""The table of confusions: all classes, or of many those that are confused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pytest

from adapt.protocols import report
from adapt.protocols.report import MOST_CLASSES, confusions

TEMPLATE = Path(report.__file__).with_name("report.html")


def rows(*answers: tuple[str, str, int]) -> list[dict[str, str]]:
    return [{"class": actual, "predicted": said} for actual, said, count in answers for _ in range(count)]


def right(count: int) -> list[tuple[str, str, int]]:
    return [(f"c{number:03}", f"c{number:03}", 2) for number in range(count)]


def test_counts_and_shares() -> None:
    found = confusions(rows(("a", "a", 3), ("a", "b", 1), ("b", "b", 2)))
    assert (found.classes, found.elsewhere, found.caption) == (["a", "b"], [], "all 2 classes")
    assert found.rows == [[3, 1], [0, 2]]
    [macro] = re.findall(r"{% macro confusion_table.*?endmacro %}", TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)
    html = jinja2.Template(macro + "{{ confusion_table(table) }}").render(table=found)
    assert re.findall(r"rgb\((.*?)\)\">(\d+)<", html) == [
        ("28 109 208 / 0.78", "3"),
        ("196 43 28 / 0.34", "1"),
        ("28 109 208 / 1.00", "2"),
    ]
    assert html.count("deep") == 2


@pytest.mark.parametrize("count", [3, 10, MOST_CLASSES])
def test_classes_that_fit_are_all_shown(count: int) -> None:
    found = confusions(rows(*right(count)))
    assert len(found.classes) == len(found.rows) == len(found.rows[0]) == count


@pytest.mark.parametrize("count", [51, 200])
def test_of_many_classes_the_most_confused_pairs_are_shown(count: int) -> None:
    """Class 2n is taken n times for its neighbour, and once for the first."""
    neighbours = [(f"c{place:03}", f"c{place + 1:03}", place) for place in range(2, count - 1, 2)]
    first = [(f"c{place:03}", "c000", 1) for place in range(2, count - 1, 2)]
    found = confusions(rows(*right(count), *neighbours, *first))
    last = (count - 2) // 2 * 2
    assert found.classes == [f"c{place:03}" for place in range(last - MOST_CLASSES + 2, last + 2)]
    assert found.caption == f"the 30 of {count} classes that are most often confused"
    assert (found.rows[0][1], sum(found.rows[0]) + found.elsewhere[0]) == (last - 28, last - 28 + 3)
    assert found.elsewhere == [1, 0] * 15


@pytest.mark.parametrize(("wrong", "classes"), [([("c007", "c042", 3)], ["c007", "c042"]), ([], None)])
def test_few_confusions_among_many_classes(wrong: Sequence[tuple[str, str, int]], classes: list[str] | None) -> None:
    found = confusions(rows(*right(100), *wrong))
    assert found.classes == (classes or [f"c{number:03}" for number in range(30)])
    assert ("without any confusion" in found.caption) is (not wrong)
