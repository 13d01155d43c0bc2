"""A CoCoOp training step on 1 image: the fast text path against the library's own forward over 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import Row, compared, in_fresh_process
from benchmarks.step import training_step

CLASSES = 100


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time a step at 100 classes, with the image through the vision tower on both sides."""
    progress("plain text path")
    plain = in_fresh_process(2, training_step, "cocoop", {}, CLASSES, 1, False)
    progress("fast text path")
    fast = in_fresh_process(5, training_step, "cocoop", {}, CLASSES, 1, True)
    yield {"classes": CLASSES, "steps": 1} | compared(plain, fast)
