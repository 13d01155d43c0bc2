"""A 16-shot CoOp epoch: cached features and the fast text path against neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adapt.bench.measure import in_fresh_process
from adapt.bench.text import ARCHITECTURE, N_CTX, Row, class_names

CLASSES, SHOTS, BATCH = 100, 16, 32


def training_step(cached: bool) -> Callable[[], Any]:
    """One optimiser step of CoOp on a batch of features, or of images (in memory: decoding is left out)."""
    import torch

    import adapt
    from adapt.tasks import classes

    backbone = adapt.load_backbone(f"open_clip:{ARCHITECTURE}")
    model = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=N_CTX), class_names(CLASSES), fast=cached)
    optimizer = torch.optim.SGD(model.method.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    labels = torch.randint(CLASSES, (BATCH,))
    features, images = torch.randn(BATCH, 512), torch.randn(BATCH, 3, 224, 224)
    inputs = torch.nn.functional.normalize(features, dim=-1) if cached else images

    def step() -> None:
        optimizer.zero_grad()
        logits = model.logits(inputs) if cached else model(inputs)
        classes.loss(logits, labels).backward()
        optimizer.step()

    return step


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """One comparison, a few steps timed and scaled to the epoch."""
    steps = CLASSES * SHOTS // BATCH
    progress("plain text path, images through the vision tower")
    plain = in_fresh_process(training_step, False, repeats=2)
    progress("fast text path, cached features")
    fast = in_fresh_process(training_step, True, repeats=5)
    yield {
        "classes": CLASSES,
        "steps": steps,
        "plain_seconds": plain.seconds * steps,
        "plain_scaled": True,
        "fast_seconds": fast.seconds * steps,
        "ratio": plain.seconds / fast.seconds,
        "fast_peak_bytes": fast.peak_bytes,
        "plain_peak_bytes": plain.peak_bytes,
    }
