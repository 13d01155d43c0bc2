"""The matrix products of a training step by formula: of frozen towers, and of learned linear maps.

A block has 12 d² weights in its linear maps, 2 d² of them for keys and values; attention has two products of each query
with each key. In the last block only keys and values are computed for all rows. A gradient through a frozen map takes
one more product of its size; in attention and in a learned map, where both factors have gradients, it takes two more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapt.prompts import Prompt, shared_prefix


@dataclass(frozen=True)
class Rows:
    """The rows that pass through a tower, those that leave the last block, and queries times keys of either."""

    all: int
    last: int
    pairs: int
    last_pairs: int


def text_rows(prompts: Sequence[Prompt], shared: bool) -> Rows:
    """Return the rows of one prompt a class; their common beginning is computed once if it may be `shared`."""
    prefix = shared_prefix(prompts, False) if shared else 0
    own = [len(prompt.ids) - prefix for prompt in prompts]
    pairs = prefix**2 + sum(each * (prefix + each) for each in own)
    return Rows(prefix + sum(own), len(own), pairs, sum(prefix + each for each in own))


def vision_rows(images: int, tokens: int) -> Rows:
    """Return the rows of `images` with `tokens` tokens each, including the class token, the only output."""
    return Rows(images * tokens, images, images * tokens**2, images * tokens)


def frozen(rows: Rows, width: int, blocks: int, through: bool, first: int = 0) -> int:
    """Return the operations of a frozen tower's blocks, with gradients `through` them or not.

    In the first block, `first` d² weights need no gradient of their input; if these are all four of its attention,
    neither do its queries, keys and values.
    """
    maps = ((12 * blocks - 10) * rows.all + 10 * rows.last) * width**2
    attention = 2 * ((blocks - 1) * rows.pairs + rows.last_pairs) * width
    if not through:
        return 2 * (maps + attention)
    spared = first * rows.all * width**2 + (4 * rows.pairs * width if first == 4 else 0)
    return 2 * (2 * maps + 3 * attention - spared)


def learned(weights: int, rows: int) -> int:
    """Return the operations of learned linear maps with `weights` weights on `rows` rows, and of their gradients."""
    return 6 * weights * rows


def step(case: str, prompts: Sequence[Prompt], images: int) -> int:
    """Return the operations of a whole step of `case` at ViT-B/16's shapes, with one prompt a class."""
    text_width, width, patches, hidden = 512, 768, 196, 96
    text, tokens = text_rows(prompts, shared=case != "lora"), 2 if case in ("maple", "ivlp") else 0
    vision = vision_rows(images, 1 + patches + tokens)
    blocks, first = (10, 4) if case == "das" else (12, 3 if case == "lora" else 0)  # DAS skips two
    through = case in ("lora", "maple", "ivlp", "das")
    total = frozen(vision, width, blocks, through, first) + 2 * images * patches * width**2
    total += 2 * images * width * text_width * (1 + through)  # the last projection
    if case != "das":  # its class features are cached
        total += frozen(text, text_width, 12, True, first) + 4 * text.last * text_width**2
    compared = 1 + through + (case != "das")  # cosines, and the gradients of either side
    total += 2 * compared * images * text.last * text_width
    if case == "lora":  # rank 2, on three maps of each block
        total += learned(12 * 3 * 4 * width, vision.all) + learned(12 * 3 * 4 * text_width, text.all)
    if case == "maple":  # vision tokens made from text tokens, in nine blocks
        total += learned(9 * width * text_width, tokens)
    if case == "cocoop":  # its meta-network
        total += learned(2 * text_width * text_width // 16, images)
    if case == "das":  # adapters at both sites of kept blocks, and in place of skipped ones
        adapter = 2 * width * hidden
        total += learned(9 * 2 * adapter + 2 * 2 * adapter, vision.all) + learned(2 * adapter, vision.last)
    return total


def check(name: str, traced: int, needed: int) -> None:
    """Raise RuntimeError if a step takes more products than it needs: replaying them would give no limit."""
    if traced > needed:
        raise RuntimeError(
            f"{name}: {traced / 1e9:.3f} G operations were traced, and {needed / 1e9:.3f} G are needed by formula: "
            "look for the new product, and whether the step can do without it"
        )
