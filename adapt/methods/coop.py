"""CoOp: context optimisation, which learns the words around the class name.

Paper: Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022.
Reference: CoOp `ff61507`, `trainers/coop.py`.
Deviations:
* `ctx_init` is counted in tokens, not words, so that a word of several tokens keeps them all; it is the same for the
  published "a photo of a".
* Class-specific context with `ctx_init` is refused; the reference silently makes the context unified.
* Context vectors are fp32 whatever the backbone's precision (the reference trains them in fp16 by default).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, ImageStep, Method, MethodConfig
from adapt.methods.base.traits import Imported, LearnedTokens, ReadsPublished, learned
from adapt.prompts import Prompt, context_length, initial_context, with_context

DEFAULT_N_CTX = 16


class CoOpConfig(MethodConfig):
    n_ctx: int | None = Field(default=None, ge=1)
    """The number of learned tokens; by default that of `ctx_init`, or 16."""
    ctx_init: str = ""
    """Words whose embeddings the context starts from; empty draws it from N(0, 0.02)."""
    class_specific: bool = False
    """Whether each class has its own context."""
    class_position: Literal["end", "middle", "front"] = "end"
    """The position of the class name among the learned tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> CoOpConfig:
        if self.ctx_init and self.class_specific:
            raise ValueError("a class_specific context starts at random, not from words: leave ctx_init empty")
        return self


class CoOp(Method[ImageStep], LearnedTokens, ReadsPublished):
    """A learned prompt context. `CoOp(n_ctx, ...)` trains `ctx` of shape `(n_ctx, d)` or `(n_classes, n_ctx, d)`."""

    name = "coop"
    title = "CoOp (Zhou et al., IJCV 2022)"
    Config = CoOpConfig
    example = {"n_ctx": 4}
    touches = frozenset({"text"})

    @property
    def per_class(self) -> bool:
        return bool(self.config.class_specific)

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        ctx = state["ctx"]
        return learned(state), {"n_ctx": ctx.shape[-2], "ctx_init": "", "class_specific": ctx.ndim == 3}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        n_ctx = context_length(self.config.n_ctx, self.config.ctx_init, backbone.tokenizer) or DEFAULT_N_CTX
        if self.config.class_specific:
            ctx = torch.empty(len(class_names), n_ctx, backbone.tower("text").width).normal_(std=0.02)
            ctx = ctx.to(backbone.device)
        else:
            ctx = initial_context(backbone, self.config.ctx_init, n_ctx)
        self.ctx = nn.Parameter(ctx)

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        n_ctx = self.ctx.shape[-2]
        prompt = with_context(tokenizer, self.config.ctx_init, n_ctx, class_name)
        # as published: the name moves into or before the context, "." and the end token stay last
        name = prompt.name
        to = name.start - n_ctx + {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[self.config.class_position]
        order = [*range(to), *name, *range(to, name.start), *range(name.stop, len(prompt.ids))]
        ids, slots = (tuple(values[i] for i in order) for values in (prompt.ids, prompt.slots))
        return [Prompt(ids, slots, range(to, to + len(name)))]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return [Tokens(self.ctx)]
