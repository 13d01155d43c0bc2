"""One folder of images classified by ten CoOp adapters at once, against one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import in_fresh_process
from benchmarks.text import Row, class_names, clip

IMAGES, CLASSES, ADAPTERS = 128, 24, 10


def predicting(adapters: int, folder: str) -> Callable[[], Any]:
    """Class features, decoding and predictions of the images in a folder."""
    import torch

    import adapt

    torch.manual_seed(0)
    backbone, names = clip(), class_names(CLASSES)
    models = [adapt.wrap(backbone, adapt.methods.CoOp(), names).eval() for _ in range(adapters)]
    return lambda: adapt.predict_many(models, sorted(Path(folder).iterdir()))


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Each in a fresh process, in which nothing is known yet."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(IMAGES):
            Image.fromarray(draw.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(f"{folder}/{number:03}.jpg")
        taken = {}
        for adapters in (1, ADAPTERS):
            progress(f"{IMAGES} images, adapters: {adapters}")
            taken[adapters] = in_fresh_process(predicting, adapters, folder, repeats=0).seconds
    one, many = taken.values()
    yield {
        "case": f"{ADAPTERS} CoOp adapters, {IMAGES} images, {CLASSES} classes",
        "one_seconds": one,
        "many_seconds": many,
        "ratio": many / one,
        "text": f"one adapter {one:.2f} s, {ADAPTERS} of them {many:.2f} s: {many / one:.2f} x",
    }
