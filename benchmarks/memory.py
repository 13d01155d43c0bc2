"""The estimate of a training step's memory against its peak, in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import adapt
from adapt import methods
from adapt.common.shown import readable_bytes
from adapt.training.step_memory import step_bytes
from benchmarks.measure import Row, in_fresh_process
from benchmarks.step import training_step
from benchmarks.text import ARCHITECTURE, class_names, clip

CLASSES, BATCHES = 100, (1, 2, 4, 8)
ARCHITECTURES = (ARCHITECTURE, "ViT-L-14-quickgelu")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Measure CoOp with images, LoRA and MaPLe, at two sizes and four batches."""
    for architecture in ARCHITECTURES:
        for method in ("coop", "lora", "maple"):
            step = step_bytes(adapt.wrap(clip(architecture), methods.find(method)(), class_names(CLASSES)))
            for batch in BATCHES:
                progress(f"{method}, {architecture}, {batch} images")
                estimated = step.of(batch)
                peak = in_fresh_process(
                    0, training_step, method, {}, CLASSES, batch, None, path="fast", architecture=architecture
                ).peak_bytes
                yield {
                    "case": f"{method}, {architecture}, {batch} image{'s' * (batch > 1)}",
                    "estimated_bytes": estimated,
                    "peak_bytes": peak,
                    "ratio": estimated / peak,
                    "text": f"estimated {readable_bytes(estimated)}, peak {readable_bytes(peak)}: "
                    f"{estimated / peak:.2f}",
                }
