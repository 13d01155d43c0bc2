"""The last block of a decoder for the tokens whose output is read; the others are only keys and values for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from adapt.backbones.tower import Tower
from adapt.edits import Edit, Replace
from adapt.engine.hooks import forward_as

# of transformers: attention, then an MLP, each behind a norm and added to its input
_KNOWN = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3VLTextDecoderLayer",
}


def applies(tower: Tower, edits: Sequence[Edit]) -> bool:
    """Return whether a decoder's last block can be computed for some tokens alone, under the `edits` of the decoder."""
    last = len(tower.blocks) - 1
    known = type(tower.blocks[last].module).__name__ in _KNOWN
    return known and all(isinstance(edit, Replace) for edit in edits if edit.block == last)


@contextmanager
def only_for(layer: Any, needed: Tensor) -> Iterator[None]:
    """Compute `layer`, the last block of a decoder, for the `needed` tokens `(b, l)` alone in the `with` block.

    All tokens are its keys and values. The output of a token that is not needed is the block's input.
    """
    with forward_as(layer, partial(_forward, layer, needed)):
        yield


def _forward(layer: Any, needed: Tensor, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
    output = layer.self_attn.o_proj
    project = output.forward  # under its edits
    with forward_as(output, lambda x: x):
        attended, *_ = layer.self_attn(layer.input_layernorm(hidden), *args, **kwargs)
    x = hidden[needed] + project(attended[needed])
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return hidden.masked_scatter(needed[..., None], x)
