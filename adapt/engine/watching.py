"""A record of the inputs and outputs of a tower's blocks while a model runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from adapt.backbones.locks import alone
from adapt.backbones.tower import Block, BlockOutput, Tower, tokens_of

Seen = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def watched(model: nn.Module, towers: Mapping[str, Tower], names: Collection[str]) -> Iterator[Seen]:
    """Yield a dict that stores the latest input and output `(b, l, d)` of each block in `names`, such as vision.3.

    In the `with` block, other threads cannot run `model`, to which the towers belong.
    """
    seen: Seen = {}
    with alone(model), ExitStack() as stack:
        for name in names:
            tower, _, index = name.partition(".")
            block = towers[tower].blocks[int(index)]

            def keep(
                module: nn.Module,
                inputs: tuple[Tensor, ...],
                output: BlockOutput,
                name: str = name,
                block: Block = block,
            ) -> None:
                before, after = inputs[0], tokens_of(output)
                seen[name] = (before, after) if block.batch_first else (before.transpose(0, 1), after.transpose(0, 1))

            stack.enter_context(block.module.register_forward_hook(keep))
        yield seen
