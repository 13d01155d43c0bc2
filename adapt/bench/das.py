"""Images through a vision tower with skipped blocks, against all blocks with their adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adapt.bench.measure import in_fresh_process
from adapt.bench.text import Row

BACKBONE, BLOCKS, BATCH = "mini-clip", 6, 32


def encoding(skipped: int) -> Callable[[], Any]:
    """One batch of images through DAS's vision tower, the last blocks skipped, no gradients."""
    import torch

    model = _model(skipped)
    images = torch.randn(BATCH, 3, *[model.backbone.preprocess.size] * 2)

    def step() -> None:
        with torch.inference_mode():
            model.image_features(images)

    return step


def _model(skipped: int) -> Any:
    import adapt

    names = [f"vision.{BLOCKS - 1 - i}" for i in range(skipped)]
    method = adapt.methods.DAS(skip=skipped, skipped=names)
    return adapt.wrap(adapt.load_backbone(BACKBONE), method, ["cat", "dog"]).eval()


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """1, 2 and 3 of six blocks skipped: seconds side by side, and the share of operations that is saved."""
    from adapt.evaluation.flops import image_flops

    progress("all blocks")
    whole, operations = in_fresh_process(encoding, 0, repeats=20), image_flops(_model(0))
    for skipped in (1, 2, 3):
        progress(f"{skipped} of {BLOCKS} blocks skipped")
        fast = in_fresh_process(encoding, skipped, repeats=20)
        yield {
            "case": f"{skipped} of {BLOCKS} blocks skipped",
            "plain_seconds": whole.seconds,
            "plain_scaled": False,
            "fast_seconds": fast.seconds,
            "ratio": whole.seconds / fast.seconds,
            "seconds_saved": 1 - fast.seconds / whole.seconds,
            "flops_saved": 1 - image_flops(_model(skipped)) / operations,
            "plain_peak_bytes": whole.peak_bytes,
            "fast_peak_bytes": fast.peak_bytes,
        }
