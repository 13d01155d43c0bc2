"""CoCoOp: conditional context optimisation, in which every image shifts the learned context.

Paper: Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022 (CoCoOp).
Reference: CoOp `ff61507`, `trainers/cocoop.py`.
Deviations:
* `ctx_init` is counted in tokens, not words, which is the same for the published "a photo of a".
* Context and meta-network are fp32 whatever the backbone's precision (the reference trains them in fp16 by default).
* The images of a batch go through the text tower together on the fast path (in the reference, one after another).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, ImageStep, Method, MethodConfig
from adapt.methods.base.traits import Imported, LearnedTokens, ReadsPublished, learned
from adapt.prompts import Prompt, context_length, initial_context, with_context

DEFAULT_N_CTX = 4
REDUCTION = 16  # the ratio of the meta-network's input width to its hidden width


class CoCoOpConfig(MethodConfig):
    n_ctx: int | None = Field(default=None, ge=1)
    """The number of learned tokens; by default that of `ctx_init`, or 4."""
    ctx_init: str = "a photo of a"
    """Words whose embeddings the context starts from; empty draws it from N(0, 0.02)."""


class CoCoOp(Method[ImageStep], LearnedTokens, ReadsPublished):
    """A context shifted for each image. `CoCoOp()` trains `ctx` `(n_ctx, d)`, and `meta_net` for the shifts."""

    name = "cocoop"
    title = "CoCoOp (Zhou et al., CVPR 2022)"
    Config = CoCoOpConfig
    example = {"n_ctx": 3, "ctx_init": ""}
    touches = frozenset({"text"})
    per_image = True

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        # every context token is learned, so no words are needed
        return learned(state), {"n_ctx": len(state["ctx"]), "ctx_init": ""}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        n_ctx = context_length(self.config.n_ctx, self.config.ctx_init, backbone.tokenizer) or DEFAULT_N_CTX
        self.ctx = nn.Parameter(initial_context(backbone, self.config.ctx_init, n_ctx))
        seen, width = self._seen(backbone), backbone.tower("text").width
        hidden = max(1, seen // REDUCTION)
        layers = {
            "linear1": nn.Linear(seen, hidden),
            "relu": nn.ReLU(),
            "linear2": nn.Linear(hidden, width),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers)).to(backbone.device)

    def _seen(self, backbone: DualEncoder) -> int:
        """Return the input width of the meta-network, which computes the shift of the context."""
        return backbone.embed_dim

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return [with_context(tokenizer, self.config.ctx_init, len(self.ctx), class_name)]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        features = context.features("vision").to(self.ctx.dtype)
        shifts = self.meta_net(features)  # (b, d), one for all tokens of the context
        return [Tokens((self.ctx + shifts[:, None])[:, None])]
