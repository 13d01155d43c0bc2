"""LM4Visual: a frozen block of a language model behind the vision tower, between two trained maps.

Paper: Pang et al., Frozen Transformers in Language Models Are Effective Visual Encoder Layers, ICLR 2024.
Reference: ziqipang/LM4VisualEncoding `e34e919` (MIT), `image_classification/models/vit_llama.py` and `llama.py`.
Deviations:
* The vision tower is frozen, and only the maps learn, from few images. The paper trains the whole encoder from scratch,
  for 300 epochs of ImageNet, and claims nothing for a frozen CLIP with few shots.
* The block's output, multiplied by `gamma`, which is trained from 0, is added to the tower's tokens, so that training
  starts at the zero-shot features. With `residual: false` it replaces them, as in the reference.
* The block is a decoder layer of transformers, of any family that has LLaMA's structure. It is called with a mask that
  hides nothing and with rotary positions that turn nothing. The reference has block 31 of LLaMA-7B, in its own code.
* Maps and block are fp32 whatever the backbone's precision.

The frozen block is in no adapter and is loaded again with one. It is large, 202 million numbers in LLaMA-7B, which are
more than twice those of CLIP's vision tower ViT-B/16; and to get it, the whole language model is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones import fingerprint
from adapt.backbones.base import DualEncoder
from adapt.backbones.decoder import decoder_tower
from adapt.backbones.families.two_models import language_model
from adapt.backbones.tower import Tower, tokens_of
from adapt.common.errors import AdaptError
from adapt.edits import After, Edit
from adapt.methods.base import Context, ImageStep, Method
from adapt.methods.base.method import HoldsAside
from adapt.methods.zero_shot import TemplateConfig


class LM4VisualConfig(TemplateConfig):
    llm: str = Field(default="mini-lm", min_length=1)
    """The language model that lends a block: mini-lm, hf:NAME or a folder."""
    block: int = -1
    """The number of its block, counted from 0, or from the end if negative."""
    blocks: int = Field(default=1, ge=1)
    """How many of its blocks follow each other between the maps, from that one on."""
    residual: bool = True
    """Whether the block's output is added to the tower's tokens, by a weight from 0, instead of replacing them."""
    eps: float = Field(default=1e-6, gt=0)
    """What is added to the mean square in the norm behind the blocks."""
    fingerprint: str | None = None
    """The block's identity, which is set when the block is first loaded; another one by the same name is refused."""


class LM4Visual(HoldsAside, Method[ImageStep]):
    """A frozen language-model block behind the vision tower. `LM4Visual()` trains two maps and `gamma` `(w,)`."""

    name = "lm4visual"
    title = "LM4Visual (Pang et al., ICLR 2024)"
    Config = LM4VisualConfig
    touches = frozenset({"vision"})

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        width = backbone.tower("vision").width  # first, since a tower without blocks is refused
        blocks, size = _frozen_blocks(self.config.llm, self.config.block, self.config.blocks, backbone.device)
        found = fingerprint.of_model(blocks if len(blocks) > 1 else blocks[0]).short()
        if self.config.fingerprint not in (None, found):
            raise AdaptError(
                f"lm4visual: block {self.config.block} of {self.config.llm} has the fingerprint {found}, but the maps "
                f"were trained around a block with {self.config.fingerprint}: give that language model by method.llm"
            )
        self.config = self.config.model_copy(update={"fingerprint": found})
        self.set_aside({"blocks": blocks}, backbone.device)
        self.llama_dim_mapper1, self.llama_dim_mapper2 = _map(width, size), _map(size, width)
        self.gamma = nn.Parameter(torch.zeros(width)) if self.config.residual else None
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        blocks, eps = self.aside["blocks"], self.config.eps
        return [After(_Behind(self.llama_dim_mapper1, blocks, self.llama_dim_mapper2, self.gamma, eps))]


class _Behind(nn.Module):
    """Blocks between two maps, for tokens `(b, l, w)`, whose output is multiplied by `gamma` `(w,)` and added."""

    def __init__(self, enter: nn.Linear, blocks: Any, leave: nn.Linear, gamma: nn.Parameter | None, eps: float) -> None:
        super().__init__()
        self.enter, self.blocks, self.leave, self.gamma, self.eps = enter, blocks, leave, gamma, eps

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x.to(self.enter.weight.dtype))
        for block in self.blocks:
            tokens = _looking_around(block, tokens)
        y: Tensor = self.leave(F.rms_norm(tokens, tokens.shape[-1:], eps=self.eps))
        return (y if self.gamma is None else x + self.gamma * y).to(x.dtype)


def _map(width: int, out: int) -> nn.Linear:
    linear = nn.Linear(width, out, bias=False)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    return linear


def _looking_around(block: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a decoder's `block` for tokens `(b, l, d)` without positions, each of which sees all."""
    seen = x.new_zeros(1, 1, x.shape[1], x.shape[1])  # added to the scores, in place of a causal mask
    unturned = x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)  # cosine and sine of rotary positions
    return tokens_of(block(x, attention_mask=seen, position_embeddings=unturned))


def _frozen_blocks(llm: str, number: int, count: int, device: torch.device) -> tuple[nn.ModuleList, int]:
    """Return blocks of the language model `llm`, from `number` on, in fp32, and the width of its tokens.

    They are on the CPU, or on the meta device if `device` is.

    Raises AdaptError if there are no such blocks, or if they need to know the order of the tokens.
    """
    decoder = decoder_tower(language_model(llm, device))
    blocks = len(decoder.blocks)
    if not -blocks <= number < blocks:
        raise AdaptError(f"lm4visual: block is {number}, but {llm} has {blocks} blocks: give {-blocks} to {blocks - 1}")
    first = number % blocks
    if first + count > blocks:
        raise AdaptError(
            f"lm4visual: blocks is {count}, but {llm} has {blocks - first} from block {first} on: give an earlier block"
        )
    taken = nn.ModuleList(each.module.float().requires_grad_(False) for each in decoder.blocks[first : first + count])
    block = taken[0]
    if not _is_of_any_order(block, decoder.width):
        raise AdaptError(
            f"lm4visual: a {type(block).__name__} of {llm} cannot see tokens without their order: use a language model "
            "of another family, such as a Llama or Qwen"
        )
    return taken, decoder.width


@torch.no_grad()
def _is_of_any_order(block: nn.Module, width: int) -> bool:
    """Return whether `block` can be called here, and whether its outputs follow the tokens if these change places.

    The outputs of an outline, on the meta device, are not compared.
    """
    tokens = torch.linspace(-1, 1, 3 * width).sin().view(1, 3, width)
    try:
        outputs, turned = _looking_around(block, tokens), _looking_around(block, tokens.flip(1))
    except (AttributeError, RuntimeError, TypeError, ValueError):  # as of a block that takes other arguments
        return False
    return outputs.is_meta or torch.allclose(outputs.flip(1), turned, rtol=1e-3, atol=1e-3)
