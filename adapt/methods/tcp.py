"""TCP: class-aware prompts, which turn the frozen model's class features into tokens inside the text tower.

Paper: Yao et al., TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model, CVPR 2024.
Reference: TCP `bd97bec`, `trainers/tcp.py`, `trainers/clip_text/model.py`.
Deviations:
* The context is fp32 whatever the backbone's precision.
* Learned tokens stand before the class name in `prompt`; the reference's prompts of ImageNet and UCF101 have words
  there which its tokens replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import nn

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, ImageStep, Method, MethodConfig, Terms
from adapt.methods.base.places import check_depth
from adapt.methods.base.traits import LearnedTokens
from adapt.methods.zero_shot import Template
from adapt.prompts import Prompt, initial_context, with_context


def _behind(text: str) -> str:
    if not text.startswith("{}"):
        raise ValueError("expected {} for the class name at the start, because learned tokens come before the name")
    return text


class TCPConfig(MethodConfig):
    n_ctx: int = Field(default=4, ge=1)
    """The number of learned tokens before the class name, which start from N(0, 0.02)."""
    block: int | None = Field(default=8, ge=1)
    """The text block, counted from 0, at whose input class-aware tokens replace the learned ones; null: two thirds
    up, as published."""
    reduction: int = Field(default=4, ge=1)
    """The ratio of the features' size to that of the hidden layer."""
    weight: float = Field(default=8.0, ge=0)
    """Weight of the distance to the hand-written prompts' class features: one minus the mean cosine over classes."""
    prompt: Annotated[str, AfterValidator(_behind)] = "{}."
    """The class name and the text after it in the learned prompt."""
    template: Template = "a photo of a {}."
    """The hand-written prompt, with {} for the class name."""


class TCP(Method[ImageStep], LearnedTokens):
    """Prompts with a learned context `ctx` `(n_ctx, d)` and tokens that `meta_net` computes from class features."""

    name = "tcp"
    title = "TCP (Yao et al., CVPR 2024)"
    Config = TCPConfig
    learns_any_step = True
    example = {"block": 1}
    touches = frozenset({"text"})

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        tower, size = backbone.tower("text"), backbone.embed_dim  # type: ignore[attr-defined]
        block = 2 * len(tower.blocks) // 3 if self.config.block is None else self.config.block
        check_depth(tower, block + 1, self.name, "block + 1")
        self.config = self.config.model_copy(update={"block": block})
        hidden = max(1, size // self.config.reduction)
        self.ctx = nn.Parameter(initial_context(backbone, "", self.config.n_ctx))
        self.meta_net = nn.ModuleDict(
            {"linear1": nn.Linear(size, hidden), "linear2": nn.Linear(hidden, self.config.n_ctx * tower.width)}
        ).to(backbone.device)

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        words = self.config.prompt.replace("{}", class_name).removesuffix(".")
        return [with_context(tokenizer, "", self.config.n_ctx, words)]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        known = context.class_features([self.config.template]).to(self.ctx.dtype)
        hidden = self.meta_net["linear1"](known)
        aware = self.meta_net["linear2"](hidden * (1.702 * hidden).sigmoid())
        return [Tokens(self.ctx), Tokens(aware.unflatten(-1, (self.config.n_ctx, -1)), self.config.block)]

    def loss(self, step: ImageStep) -> Terms:
        known = step.frozen_class_features([self.config.template])
        apart = 1 - F.cosine_similarity(step.class_features, known, dim=-1).mean()
        return super().loss(step) | {"knowledge": self.config.weight * apart}
