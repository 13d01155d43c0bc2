"""A 16-shot CoOp epoch: cached features and the fast text path against neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import in_fresh_process
from benchmarks.step import row, training_step
from benchmarks.text import N_CTX, Row

CLASSES, SHOTS, BATCH = 100, 16, 32


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """One comparison, a few steps timed and scaled to the epoch."""
    case = ("coop", {"n_ctx": N_CTX}, CLASSES, BATCH)
    progress("plain text path, images through the vision tower")
    plain = in_fresh_process(training_step, *case, False, repeats=2)
    progress("fast text path, cached features")
    fast = in_fresh_process(training_step, *case, True, True, repeats=5)
    yield row(CLASSES, plain, fast, steps=CLASSES * SHOTS // BATCH, scaled=True)
