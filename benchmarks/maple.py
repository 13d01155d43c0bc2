"""A MaPLe training step on 4 images: the fast text path against the library's own forward over 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import in_fresh_process
from benchmarks.step import row, training_step
from benchmarks.text import Row

BATCH = 4


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """At 100 and 1,000 classes; both sides take the classes in parts where they do not fit into memory."""
    for classes, repeats in ((100, 2), (1000, 0)):  # a step that takes minutes is timed cold, on both sides
        progress(f"plain text path, {classes} classes")
        plain = in_fresh_process(training_step, "maple", {}, classes, BATCH, False, repeats=repeats)
        progress(f"fast text path, {classes} classes")
        yield row(classes, plain, in_fresh_process(training_step, "maple", {}, classes, BATCH, True, repeats=repeats))
