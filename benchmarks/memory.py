"""The estimate of a training step's memory against its peak, in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adapt.engine.memory import readable_bytes
from benchmarks.measure import in_fresh_process
from benchmarks.step import training_step
from benchmarks.text import ARCHITECTURE, Row, class_names, clip

CLASSES, BATCHES = 100, (1, 2, 4, 8)
ARCHITECTURES = (ARCHITECTURE, "ViT-L-14-quickgelu")


def estimated(method: str, architecture: str) -> Any:
    """What training would say before its first step."""
    import adapt
    from adapt import methods
    from adapt.training.step_memory import step_bytes

    backbone = clip(architecture)
    return step_bytes(adapt.wrap(backbone, methods.find(method)(), class_names(CLASSES)))


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """CoOp with images, LoRA and MaPLe, at two sizes and four batches."""
    for architecture in ARCHITECTURES:
        for method in ("coop", "lora", "maple"):
            step = estimated(method, architecture)
            for batch in BATCHES:
                progress(f"{method}, {architecture}, {batch} images")
                case: Any = (method, {}, CLASSES, batch, None, False, "fast", architecture)
                peak = in_fresh_process(training_step, *case, repeats=0).peak_bytes
                yield {
                    "case": f"{method}, {architecture}, {batch} image{'s' * (batch > 1)}",
                    "estimated_bytes": step.of(batch),
                    "peak_bytes": peak,
                    "ratio": step.of(batch) / peak,
                    "text": f"estimated {readable_bytes(step.of(batch))}, peak {readable_bytes(peak)}: "
                    f"{step.of(batch) / peak:.2f}",
                }
