"""Images through a vision tower with skipped blocks, against all blocks with their adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import adapt
from adapt import AdaptedModel
from adapt.evaluation.flops import image_flops
from adapt.recipe import read_recipe
from benchmarks.drawings import backbone
from benchmarks.measure import THREADS, Row, by_turns

BLOCKS, BATCH, ROUNDS = 6, 32, 60


def model(skipped: int) -> AdaptedModel:
    """Return the shipped recipe's DAS on the bundled vision tower before any training, with the last blocks skipped.

    It takes the library's own forward, in which all blocks take the same path, and whose operations are counted.
    """
    names = [f"vision.{BLOCKS - 1 - i}" for i in range(skipped)]
    method = adapt.methods.DAS(**read_recipe("das").method_config | {"skipped": names})
    return adapt.wrap(backbone().to("cpu"), method, ["cat", "dog"], fast=False).eval()


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Skip 1, 2 and 3 of six blocks: the seconds and operations saved, with all four models by turns."""
    torch.set_num_threads(THREADS)
    models = [model(skipped) for skipped in range(4)]
    images = torch.randn(BATCH, 3, *[backbone().preprocess.size] * 2)
    progress(f"{ROUNDS} rounds of {BATCH} images")
    with torch.inference_mode():
        seconds = by_turns([partial(each.image_features, images) for each in models], ROUNDS)
    operations = [image_flops(each) for each in models]
    for skipped in (1, 2, 3):
        saved = {
            "seconds_saved": 1 - seconds[skipped] / seconds[0],
            "flops_saved": 1 - operations[skipped] / operations[0],
        }
        yield {
            "case": f"{skipped} of {BLOCKS} blocks skipped",
            "plain_seconds": seconds[0],
            "fast_seconds": seconds[skipped],
            **saved,
            "text": f"{seconds[0]:.4f} s -> {seconds[skipped]:.4f} s, {100 * saved['seconds_saved']:.1f} % of the time "
            f"and {100 * saved['flops_saved']:.1f} % of the operations saved",
        }
