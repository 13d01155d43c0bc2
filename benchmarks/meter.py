"""Operations that DAS saves at METER's shape, by formula; for its fusion blocks by torch's counter too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from transformers import BridgeTowerTextConfig
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from adapt.evaluation.flops import flops
from benchmarks.measure import Row

# 384 px in patches of 16 with a class token, 40 words; width, hidden size of one block's adapters (3 of 96)
IMAGE, TEXT, WIDTH, HIDDEN = 577, 40, 768, 288
BLOCKS = 6  # of each stream
VISION_BLOCKS, TEXT_BLOCKS = 11, 12  # CLIP's ViT without its last block, and RoBERTa


def fusion_block(own: int, other: int) -> int:
    """Return the operations of a cross-modal block over `own` tokens that attend to `other` tokens."""
    linears = 14 * own * WIDTH**2 + 2 * other * WIDTH**2
    return 2 * (linears + 2 * own**2 * WIDTH + 2 * own * other * WIDTH)


def meter() -> int:
    """Return METER's operations for one image and text."""
    streams = [(VISION_BLOCKS, IMAGE), (TEXT_BLOCKS, TEXT)]
    encoders = sum(blocks * (12 * n * WIDTH**2 + 2 * n**2 * WIDTH) for blocks, n in streams)
    patches = (IMAGE - 1) * WIDTH * 16 * 16 * 3
    joined = (IMAGE + TEXT) * WIDTH**2  # into the fusion space
    fusion = BLOCKS * (fusion_block(IMAGE, TEXT) + fusion_block(TEXT, IMAGE))
    return 2 * (encoders + patches + joined) + fusion


def adapters() -> int:
    """Return the operations of the adapters of all fusion blocks, kept or skipped."""
    return 2 * BLOCKS * (IMAGE + TEXT) * 2 * WIDTH * HIDDEN


def saved(image: int, text: int) -> float:
    """Return the share of METER's operations saved by skipping blocks of each stream, net of all adapters."""
    skipped = image * fusion_block(IMAGE, TEXT) + text * fusion_block(TEXT, IMAGE)
    return (skipped - adapters()) / meter()


def counted(own: int, other: int) -> int:
    """Return `fusion_block` by torch's counter, over BridgeTower's block, which is METER's."""
    config = BridgeTowerTextConfig(hidden_size=WIDTH, num_attention_heads=12, intermediate_size=4 * WIDTH)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        block = BridgeTowerBertCrossLayer(config).eval()
        x, y = torch.empty(1, own, WIDTH), torch.empty(1, other, WIDTH)
    return flops(lambda: block(x, y))


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Skip four fusion blocks, divided between image and text in five ways."""
    progress("counting the fusion blocks")
    over = {
        stream: fusion_block(*tokens) / counted(*tokens)
        for stream, tokens in (("image", (IMAGE, TEXT)), ("text", (TEXT, IMAGE)))
    }
    for image, text in ((2, 2), (1, 3), (3, 1), (0, 4), (4, 0)):
        share = saved(image, text)
        yield {
            "case": f"METER, {image} image and {text} text fusion blocks skipped",
            "flops_saved": share,
            "formula_over_counter": over,
            "text": f"{100 * share:.1f} % of operations saved (a block by formula over counter: image "
            f"{over['image']:.4f}, text {over['text']:.4f})",
        }
