"""Backbones with 4 and 8 bit linears: weights in memory, and how far features move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import adapt
from adapt.backbones.base import DualEncoder
from adapt.backbones.quantize import KINDS, quantize, weight_bytes
from adapt.models.features import item_features
from benchmarks.drawings import SEEN, drawings
from benchmarks.measure import Row


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report for each kind and model the share of the weights' bytes, and the lowest cosine of image features.

    ViT-B/16 has random weights here.
    """
    for spec in ("open_clip:ViT-B-16", "mini-clip"):
        progress(f"{spec} in full precision")
        full = _loaded(spec)
        before, expected = weight_bytes(full.model), _features(full)
        for kind in KINDS:
            progress(f"{spec} in {kind}")
            backbone = _loaded(spec)
            quantize(backbone, kind)
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


def _loaded(spec: str) -> DualEncoder:
    torch.manual_seed(0)
    backbone = adapt.load_backbone(spec, "cpu")
    assert isinstance(backbone, DualEncoder)
    return backbone


def _features(backbone: DualEncoder) -> Tensor:
    """Return the unit-length features of the bundled test images."""
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(), drawings(SEEN).class_names).eval()
    return item_features(model, drawings(SEEN).test, workers=0, cache=False)
