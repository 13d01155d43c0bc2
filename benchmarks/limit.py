"""A training step at ViT-B/16's shapes, and which share of it the matrix products take that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.measure import THREADS, by_turns
from benchmarks.products import products_of
from benchmarks.step import training_step
from benchmarks.text import Row

CLASSES, ROUNDS = 100, 7
# method, its settings, images a step
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "LoRA": ("lora", {}, 8),
    "MaPLe": ("maple", {}, 4),
    "IVLP": ("ivlp", {}, 4),
    "CoCoOp": ("cocoop", {}, 1),
    "CoOp with images": ("coop", {}, 8),
    "DAS": ("das", {"skipped": ["vision.3", "vision.7"]}, 4),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """A step by the fast paths, by the library's own forward of images and by the products alone, by turns."""
    import torch

    torch.set_num_threads(THREADS)
    for case, (method, config, batch) in CASES.items():
        progress(f"{case}, {batch} images, {CLASSES} classes")
        torch.manual_seed(0)
        step = training_step(method, config, CLASSES, batch, None)
        products = products_of(step)
        taken, limit = by_turns([step, products], ROUNDS)
        yield {
            "case": f"{case}, {batch} images",
            "seconds": taken,
            "limit_seconds": limit,
            "share": limit / taken,
            "text": f"{taken:.3f} s, of which the products alone take {limit:.3f} s: {limit / taken:.2f} of the limit",
        }
