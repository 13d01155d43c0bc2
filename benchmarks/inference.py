"""Images through an adapted vision tower, against the bare model by its library's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import adapt
from adapt import methods
from benchmarks.measure import THREADS, Row, by_turns
from benchmarks.text import clip

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "CoOp": ("coop", {}),
    "LoRA": ("lora", {}),
    "MaPLe": ("maple", {}),
    "DAS, two of twelve blocks skipped": ("das", {"skipped": ["vision.3", "vision.7"]}),
}
ROUNDS = {1: 40, 32: 5}  # by the number of images in a batch


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time all of them by turns, for batches of one image and of 32."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    backbone = clip()
    models = [
        adapt.wrap(backbone, methods.find(name)(**config), ["cat", "dog"]).eval() for name, config in CASES.values()
    ]
    for batch, rounds in ROUNDS.items():
        progress(f"{rounds} rounds of {batch} images")
        images = torch.randn(batch, 3, 224, 224)
        encoders = [backbone.encode_image, *(model.image_features for model in models)]
        with torch.inference_mode():
            bare, *adapted = by_turns([partial(encode, images) for encode in encoders], rounds, warming=2)
        for case, taken in zip(CASES, adapted, strict=True):
            yield {
                "case": f"{case}, {batch} image{'s' * (batch > 1)}",
                "plain_seconds": bare,
                "fast_seconds": taken,
                "share": taken / bare,
                "text": f"{taken:.3f} s, the bare model {bare:.3f} s: {taken / bare:.2f}",
            }
