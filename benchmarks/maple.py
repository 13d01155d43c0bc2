"""A MaPLe training step on 4 images: the fast text path against the library's own forward over 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import Row, compared, in_fresh_process
from benchmarks.step import training_step

BATCH = 4


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time a step at 100 and 1,000 classes; both sides process the classes in parts if memory is short."""
    for classes, repeats in ((100, 2), (1000, 0)):  # a step that takes minutes is timed cold, on both sides
        progress(f"plain text path, {classes} classes")
        plain = in_fresh_process(repeats, training_step, "maple", {}, classes, BATCH, False)
        progress(f"fast text path, {classes} classes")
        fast = in_fresh_process(repeats, training_step, "maple", {}, classes, BATCH, True)
        yield {"classes": classes, "steps": 1} | compared(plain, fast)
