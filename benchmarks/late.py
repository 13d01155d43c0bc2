"""A step of LoRA in the last three vision blocks: from the input of the first of them, and from the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import adapt
from adapt.methods.base import total
from benchmarks.measure import THREADS, Row, by_turns
from benchmarks.text import class_names, clip

CLASSES, BATCH, ROUNDS = 100, 8, 15
FIRST, LAST = 9, 12


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time the same model on the same images, by turns and without decoding."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    method = adapt.methods.LoRA(towers=["vision"], blocks=(FIRST, LAST))
    model = adapt.wrap(clip(), method, class_names(CLASSES))
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(CLASSES, (BATCH,))
    known = model.block_inputs(images, FIRST)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.002)

    def step(inputs: object) -> None:
        optimizer.zero_grad()
        total(model.losses(model.step(inputs, labels))[0]).backward()
        optimizer.step()

    progress(f"{ROUNDS} rounds of {BATCH} images")
    from_images, late = by_turns([lambda: step(images), lambda: step(known)], ROUNDS, warming=2)
    yield {
        "case": f"LoRA in blocks {FIRST} to {LAST - 1}, {BATCH} images",
        "plain_seconds": from_images,
        "fast_seconds": late,
        "ratio": from_images / late,
        "text": f"{from_images:.3f} s -> {late:.3f} s, {from_images / late:.2f} x",
    }
