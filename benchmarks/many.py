"""One folder of images classified by ten CoOp adapters at once, against one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import adapt
from benchmarks.measure import Row, in_fresh_process
from benchmarks.text import class_names, clip

IMAGES, CLASSES, ADAPTERS = 128, 24, 10


def predicting(adapters: int, folder: str) -> Callable[[], object]:
    """Return a step of class features, decoding and predictions for the images in a folder."""
    torch.manual_seed(0)
    backbone, names = clip(), class_names(CLASSES)
    models = [adapt.wrap(backbone, adapt.methods.CoOp(), names).eval() for _ in range(adapters)]
    return lambda: adapt.predict_many(models, sorted(Path(folder).iterdir()))


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time each in a fresh process, in which nothing is cached yet."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(IMAGES):
            Image.fromarray(draw.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(f"{folder}/{number:03}.jpg")
        seconds = []
        for adapters in (1, ADAPTERS):
            progress(f"{IMAGES} images, adapters: {adapters}")
            seconds.append(in_fresh_process(0, predicting, adapters, folder).seconds)
    one, many = seconds
    yield {
        "case": f"{ADAPTERS} CoOp adapters, {IMAGES} images, {CLASSES} classes",
        "one_seconds": one,
        "many_seconds": many,
        "ratio": many / one,
        "text": f"one adapter {one:.2f} s, {ADAPTERS} of them {many:.2f} s: {many / one:.2f} x",
    }
