"""A 16-shot CoOp epoch: cached features and the fast text path against neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import Row, compared, in_fresh_process
from benchmarks.step import training_step
from benchmarks.text import N_CTX

CLASSES, SHOTS, BATCH = 100, 16, 32
STEPS = CLASSES * SHOTS // BATCH


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time a few steps and scale them to the epoch."""
    progress("plain text path, images through the vision tower")
    plain = in_fresh_process(2, training_step, "coop", {"n_ctx": N_CTX}, CLASSES, BATCH, False)
    progress("fast text path, cached features")
    fast = in_fresh_process(5, training_step, "coop", {"n_ctx": N_CTX}, CLASSES, BATCH, True, cached=True)
    yield {"classes": CLASSES, "steps": STEPS} | compared(plain.times(STEPS), fast.times(STEPS), scaled=True)
