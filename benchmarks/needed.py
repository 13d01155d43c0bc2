"""The products of a training step by formula: of frozen towers, and of the linear maps that are learned.

A block has 12 d² weights in its linear maps, 2 d² of them for keys and values; attention has two products of each query
with each key. Of the last block only keys and values are of all rows. A gradient through a frozen map is one product
more of its size; through one whose factors both have gradients, in attention or in a learned map, there are two more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapt.prompts import shared_prefix


@dataclass(frozen=True)
class Rows:
    """What goes through a tower: rows, rows that leave the last block, and queries times keys of either."""

    all: int
    last: int
    pairs: int
    last_pairs: int


def text_rows(prompts: Sequence[Any], shared: bool) -> Rows:
    """Of a prompt of each class, whose common beginning is computed once where it may be `shared`."""
    prefix = shared_prefix(prompts, False) if shared else 0
    own = [len(prompt.ids) - prefix for prompt in prompts]
    pairs = prefix**2 + sum(each * (prefix + each) for each in own)
    return Rows(prefix + sum(own), len(own), pairs, sum(prefix + each for each in own))


def vision_rows(images: int, tokens: int) -> Rows:
    """Of images of so many tokens each, the class token included, which alone is read at the end."""
    return Rows(images * tokens, images, images * tokens**2, images * tokens)


def frozen(rows: Rows, width: int, blocks: int, through: bool, first: int = 0) -> int:
    """Operations of a frozen tower's blocks, and with gradients `through` them.

    Of the first block, `first` d² weights need no gradient of what they read, and with all four of its attention nor do
    its queries, keys and values.
    """
    maps = ((12 * blocks - 10) * rows.all + 10 * rows.last) * width**2
    attention = 2 * ((blocks - 1) * rows.pairs + rows.last_pairs) * width
    if not through:
        return 2 * (maps + attention)
    spared = first * rows.all * width**2 + (4 * rows.pairs * width if first == 4 else 0)
    return 2 * (2 * maps + 3 * attention - spared)


def learned(weights: int, rows: int) -> int:
    """Operations of learned linear maps with so many weights, which see so many rows, and of their gradients."""
    return 6 * weights * rows


def step(case: str, prompts: Sequence[Any], images: int) -> int:
    """Operations of a whole step of `case` at ViT-B/16's shapes, by batch, with a prompt of each class."""
    text_width, width, patches, hidden = 512, 768, 196, 96
    text, tokens = text_rows(prompts, shared=case != "lora"), 2 if case in ("maple", "ivlp") else 0
    vision = vision_rows(images, 1 + patches + tokens)
    blocks, first = (10, 4) if case == "das" else (12, 3 if case == "lora" else 0)  # DAS skips two
    through = case in ("lora", "maple", "ivlp", "das")
    total = frozen(vision, width, blocks, through, first) + 2 * images * patches * width**2
    total += 2 * images * width * text_width * (1 + through)  # the last projection
    if case != "das":  # whose class features are known
        total += frozen(text, text_width, 12, True, first) + 4 * text.last * text_width**2
    compared = 1 + through + (case != "das")  # cosines, and the gradients of either side
    total += 2 * compared * images * text.last * text_width
    if case == "lora":  # of rank 2, on three maps of each block
        total += learned(12 * 3 * 4 * width, vision.all) + learned(12 * 3 * 4 * text_width, text.all)
    if case == "maple":  # vision tokens of text tokens, in nine blocks
        total += learned(9 * width * text_width, tokens)
    if case == "cocoop":  # its network of images
        total += learned(2 * text_width * text_width // 16, images)
    if case == "das":  # at both sites of kept blocks, and in place of skipped ones
        adapter = 2 * width * hidden
        total += learned(9 * 2 * adapter + 2 * 2 * adapter, vision.all) + learned(2 * adapter, vision.last)
    return total


def check(name: str, traced: int, needed: int) -> None:
    """Raises RuntimeError where a step takes more products than it needs: replayed, they are no limit."""
    if traced > needed:
        raise RuntimeError(
            f"{name}: {traced / 1e9:.3f} G operations were traced, and {needed / 1e9:.3f} G are needed by formula: the "
            "replay would be no limit. See which product is new, and whether the step can do without it"
        )
