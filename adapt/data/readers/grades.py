"""Words for numbers: the classes of images that have a target and no label."""

from __future__ import annotations

from collections.abc import Sequence

from adapt.data.readers.rows import Listed

GRADES = ("bad", "poor", "fair", "good", "perfect")  # UniQA's (arXiv 2406.01069), from the lowest


def graded(rows: Sequence[Listed]) -> list[Listed]:
    """`rows` with a word for each target: one of five, for as many equal parts of what lies between the extremes."""
    targets = [row.target for row in rows if row.target is not None]
    low, high = min(targets), max(targets)
    width = (high - low) / len(GRADES) or 1.0

    def word(target: float) -> str:
        return GRADES[min(int((target - low) / width), len(GRADES) - 1)]

    return [row if row.target is None else row._replace(class_name=word(row.target)) for row in rows]
