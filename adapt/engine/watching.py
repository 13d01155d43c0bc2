"""What goes into the blocks of a tower, and what comes out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from adapt.backbones.tower import Tower, tokens_of

Seen = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def watched(towers: Mapping[str, Tower], names: Collection[str]) -> Iterator[Seen]:
    """Inside, blocks such as vision.3 leave the input and output `(b, l, d)` of their last call in what is yielded.

    Where a tower computes `(l, b, d)`, so is what they leave.
    """
    seen: Seen = {}
    with ExitStack() as stack:
        for name in names:

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                seen[name] = inputs[0], tokens_of(output)

            tower, _, index = name.partition(".")
            handle = towers[tower].blocks[int(index)].module.register_forward_hook(keep)
            stack.callback(handle.remove)
        yield seen
