"""MaPLe: multi-modal prompt learning, with deep text prompts and vision prompts projected from them.

Paper: Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023.
Reference: MaPLe `69bce21`, `trainers/maple.py`, `clip/model.py`.
Deviations:
* More learned tokens than `ctx_init` has are refused; the reference starts them at random and drops the words, which
  is `ctx_init=""` here.
* All parameters are fp32 whatever the backbone's precision; the reference keeps the first prompts and their projection
  in fp16. Widths are those of the towers (512 and 768 in the reference).
* Both towers have one depth, as published; it is refused if either tower has fewer blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, ImageStep, Method, MethodConfig
from adapt.methods.base.places import depth_in
from adapt.methods.base.traits import LEARNER, Imported, LearnedTokens, ReadsPublished, learned
from adapt.prompts import Prompt, initial_context, published_words, with_context

PUBLISHED_SHARE = 0.75  # the share of blocks with learned tokens: 9 of 12


class MaPLeConfig(MethodConfig):
    n_ctx: int = Field(default=2, ge=1)
    """The number of learned tokens in each tower."""
    depth: int | None = Field(default=9, ge=1)
    """Number of blocks, from the first, with learned tokens of their own; null: three quarters of all, as published."""
    ctx_init: str = "a photo of a"
    """The words before the class name, from which the first learned tokens start; empty draws these from N(0, 0.02)."""


class MaPLe(Method[ImageStep], LearnedTokens, ReadsPublished):
    """Text prompts projected to vision prompts. `MaPLe()` trains `ctx`, `compound_prompts_text.I` and projections."""

    name = "maple"
    title = "MaPLe (Khattak et al., CVPR 2023)"
    Config = MaPLeConfig
    example = {"depth": 2}
    touches = frozenset({"text", "vision"})

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        n_ctx = len(state[f"{LEARNER}ctx"])
        tensors = learned(state, LEARNER)
        deeper = sum(key.startswith("compound_prompts_text.") for key in tensors)
        return tensors, {"n_ctx": n_ctx, "depth": 1 + deeper, "ctx_init": published_words(n_ctx)}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        text, vision = backbone.tower("text"), backbone.tower("vision")
        depth = depth_in((text, vision), self.config.depth, PUBLISHED_SHARE, self.name, "depth")
        self.config, deeper = self.config.model_copy(update={"depth": depth}), depth - 1
        self.ctx = nn.Parameter(initial_context(backbone, self.config.ctx_init, self.config.n_ctx))
        self.proj = nn.Linear(text.width, vision.width)
        self.compound_prompts_text = nn.ParameterList(
            torch.empty(self.config.n_ctx, text.width).normal_(std=0.02) for _ in range(deeper)
        )
        projection = nn.Linear(text.width, vision.width)
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(projection) for _ in range(deeper))
        self.to(backbone.device)

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return [with_context(tokenizer, self.config.ctx_init, self.config.n_ctx, class_name)]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        prompts = [self.ctx, *self.compound_prompts_text]
        if tower.name == "vision":
            couplings = [self.proj, *self.compound_prompt_projections]
            prompts = [coupling(values) for coupling, values in zip(couplings, prompts)]
        return [Tokens(values, block or None) for block, values in enumerate(prompts)]
