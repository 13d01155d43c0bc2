"""Images through a vision tower with skipped blocks, against all blocks with their adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.measure import THREADS, by_turns
from benchmarks.text import Row

BACKBONE, BLOCKS, BATCH, ROUNDS = "mini-clip", 6, 32, 60


def model(skipped: int) -> Any:
    """The shipped recipe's DAS on the bundled vision tower before any training, the last blocks skipped.

    By the library's own forward, in which all blocks take the same, and which operations are counted of.
    """
    import adapt
    from adapt.recipe import read_recipe

    names = [f"vision.{BLOCKS - 1 - i}" for i in range(skipped)]
    method = adapt.methods.DAS(**read_recipe("das").method_config | {"skipped": names})
    return adapt.wrap(adapt.load_backbone(BACKBONE, "cpu"), method, ["cat", "dog"], fast=False).eval()


def seconds(models: list[Any], rounds: int) -> list[float]:
    """The median seconds of each model's vision tower over one batch, by turns."""
    import torch

    images = torch.randn(BATCH, 3, *[models[0].backbone.preprocess.size] * 2)
    with torch.inference_mode():
        return by_turns([lambda model=model: model.image_features(images) for model in models], rounds)  # type: ignore[misc]


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """1, 2 and 3 of six blocks skipped: what is saved of seconds and operations, all four models by turns."""
    import torch

    from adapt.evaluation.flops import image_flops

    torch.set_num_threads(THREADS)
    models = [model(skipped) for skipped in range(4)]
    progress(f"{ROUNDS} rounds of {BATCH} images")
    taken, operations = seconds(models, ROUNDS), [image_flops(each) for each in models]
    for skipped in (1, 2, 3):
        saved = {"seconds_saved": 1 - taken[skipped] / taken[0], "flops_saved": 1 - operations[skipped] / operations[0]}
        yield {
            "case": f"{skipped} of {BLOCKS} blocks skipped",
            "plain_seconds": taken[0],
            "fast_seconds": taken[skipped],
            **saved,
            "text": f"{taken[0]:.4f} s -> {taken[skipped]:.4f} s, {100 * saved['seconds_saved']:.1f} % of the time and "
            f"{100 * saved['flops_saved']:.1f} % of the operations saved",
        }
