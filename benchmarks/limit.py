"""A training step with images through the vision tower: by the fast path, the plain one, and its products alone.

The matrix products are those that a formula asks for: a step that takes more is an error. The products of attention
count at the rate of the linear maps. Computed separately they would write out the scores, which the fused kernel never
does, and the limit would read too high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import adapt
from benchmarks import needed
from benchmarks.measure import THREADS, Row, by_turns
from benchmarks.products import products_of
from benchmarks.step import training_step
from benchmarks.text import class_names, clip

CLASSES, ROUNDS = 100, 9
# method, its settings, images a step
CASES: dict[str, tuple[str, dict[str, object], int]] = {
    "LoRA": ("lora", {}, 8),
    "MaPLe": ("maple", {}, 4),
    "IVLP": ("ivlp", {}, 4),
    "CoCoOp": ("cocoop", {}, 1),
    "CoOp with images": ("coop", {}, 8),
    "DAS": ("das", {"skipped": ["vision.3", "vision.7"]}, 4),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time all three by turns in this process.

    The plain side is open_clip's own forward of the images; the text side takes the fast path on both.
    """
    torch.set_num_threads(THREADS)
    backbone, names = clip(), class_names(CLASSES)
    for case, (method, config, batch) in CASES.items():
        progress(f"{case}, {batch} images, {CLASSES} classes")
        torch.manual_seed(0)
        fast = training_step(method, config, CLASSES, batch, None, path="fast")
        plain = training_step(method, config, CLASSES, batch, None, path="plain")
        products = products_of(fast)
        prompting = adapt.wrap(backbone, adapt.methods.find(method)(**config), names).method
        prompts = [prompting.prompts(backbone.tokenizer, name)[0] for name in names]
        needed.check(case, products.flops, needed.step(method, prompts, batch))
        taken, before, maps = by_turns([fast, plain, products.of_maps], ROUNDS, warming=2)
        limit = products.seconds(maps)
        yield {
            "case": f"{case}, {batch} image{'s' * (batch > 1)}",
            "plain_seconds": before,
            "fast_seconds": taken,
            "ratio": before / taken,
            "limit_seconds": limit,
            "share_of_limit": limit / taken,
            "text": f"{before:.3f} s -> {taken:.3f} s, {before / taken:.2f} x; the products alone {limit:.3f} s, "
            f"{limit / taken:.2f} of the time",
        }
