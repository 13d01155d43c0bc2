"""A CoCoOp training step on 1 image: the fast text path against the library's own forward over 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import in_fresh_process
from benchmarks.step import row, training_step
from benchmarks.text import Row

CLASSES, BATCH = 100, 1


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """At 100 classes, with the image through the vision tower on either side."""
    progress("plain text path")
    plain = in_fresh_process(training_step, "cocoop", {}, CLASSES, BATCH, False, repeats=2)
    progress("fast text path")
    yield row(CLASSES, plain, in_fresh_process(training_step, "cocoop", {}, CLASSES, BATCH, True, repeats=5))
