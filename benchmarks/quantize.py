"""Backbones with 4 and 8 bit linears: weights in memory, and how far features move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.text import Row

SHAPE, BACKBONE, DATA = "open_clip:ViT-B-16", "mini-clip", "emoji"


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """For each kind and model: the share of the weights' bytes, and the lowest cosine of the bundled images' features.

    ViT-B/16 has random weights here.
    """
    import torch

    import adapt
    from adapt.backbones.quantize import KINDS, quantize, weight_bytes

    for spec in (SHAPE, BACKBONE):
        progress(f"{spec} in full precision")
        torch.manual_seed(0)
        whole = adapt.load_backbone(spec, "cpu")
        before, expected = weight_bytes(whole.model), _features(whole)
        for kind in KINDS:
            progress(f"{spec} in {kind}")
            torch.manual_seed(0)
            backbone = quantize(adapt.load_backbone(spec, "cpu"), kind)
            share = weight_bytes(backbone.model) / before
            lowest = float((_features(backbone) * expected).sum(-1).min())
            yield {
                "case": f"{spec} in {kind}",
                "share_of_bytes": share,
                "lowest_cosine": lowest,
                "images": len(expected),
                "text": f"{100 * share:.1f} % of the weights' bytes, lowest cosine {lowest:.4f} "
                f"over {len(expected)} images",
            }


def _features(backbone: Any) -> Any:
    """Unit-length features of the bundled test images."""
    import adapt
    from adapt.features import item_features

    split = adapt.data.load(DATA)
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(), split.class_names).eval()
    return item_features(model, split.test, workers=0, cache=False)
