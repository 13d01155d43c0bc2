"""What goes into the blocks of a tower, and what comes out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from adapt.backbones.tower import Block, Tower, tokens_of
from adapt.backbones.turns import alone

Seen = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def watched(model: nn.Module, towers: Mapping[str, Tower], names: Collection[str]) -> Iterator[Seen]:
    """Inside, blocks such as vision.3 leave the input and output `(b, l, d)` of their last call in what is yielded.

    No other thread's call runs on `model`, of which the towers are, meanwhile.
    """
    seen: Seen = {}
    with alone(model), ExitStack() as stack:
        for name in names:
            tower, _, index = name.partition(".")
            block = towers[tower].blocks[int(index)]

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name, block: Block = block) -> None:
                before, after = inputs[0], tokens_of(output)
                seen[name] = (before, after) if block.batch_first else (before.transpose(0, 1), after.transpose(0, 1))

            stack.callback(block.module.register_forward_hook(keep).remove)
        yield seen
