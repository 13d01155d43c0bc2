"""MQT: learned queries pool an image's patches into visual tokens, of which any number of the first may be used.

Paper: Hu et al., Matryoshka Query Transformer for Large Vision-Language Models, NeurIPS 2024.
Reference: gordonhu608/MQT-LLaVA, commit 92c35d0 (`Resampler`), whose parameter names are used here.
Deviations:
* The language model stays frozen, so that both of the paper's stages are one, and the number of tokens is drawn from
  the first step. It is drawn by torch's generator, once for each batch, as there.
* Sizes are read from the model: the grid of patches is not 24 x 24, and heads have 64 numbers each, as published.
* `keys: patches` is ours: keys are patches plus positions, as in Qwen-VL's resampler. With the published keys, which
  are positions alone, the attention is the same for every image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, Method, MethodConfig, Step
from adapt.methods.base.nested import Nested, powers
from adapt.methods.base.traits import Imported, ReadsPublished

_HEAD = 64  # numbers, of the published 1024 in 16 heads
_EPS = 1e-6  # of the norms
_STD = 0.02  # of what is drawn at the start


class MQTConfig(MethodConfig):
    tokens: int = Field(default=256, ge=1)
    """The number of queries, and so the most visual tokens: a square."""
    heads: int | None = Field(default=None, ge=1)
    """The heads of the attention; by default one for 64 numbers."""
    keys: Literal["positions", "patches"] = "positions"
    """What the attention compares queries with: positions alone, as published, or patches with their positions."""
    drawn: tuple[int, ...] | None = None
    """The numbers of tokens that training draws from; by default all even ones, as published, and 1 if it is all."""

    @model_validator(mode="after")
    def _numbers(self) -> MQTConfig:
        if math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(f"tokens is {self.tokens}; expected a square, such as 16, 64 or 256")
        wrong = [number for number in self.drawn or () if not 1 <= number <= self.tokens]
        if wrong:
            raise ValueError(f"drawn has {wrong[0]}; expected 1 to {self.tokens}, the number of tokens")
        return self


class MQTAtUse(BaseModel, extra="forbid", frozen=True):
    """The settings that can be changed at inference."""

    tokens: int | None = Field(default=None, ge=1)
    """The number of visual tokens; by default all."""


class MQT(Nested, Method[Step], ReadsPublished):
    """Visual tokens `(m, d)` of a language model, pooled from an image's patches by the first m of some queries."""

    at_use: MQTAtUse = MQTAtUse()
    pos_embed: Tensor
    patch_pos: Tensor
    name = "mqt"
    title = "Matryoshka Query Transformer (Hu et al., NeurIPS 2024)"
    serves = ("vision LLM",)
    touches = frozenset({"decoder"})
    Config = MQTConfig
    example = {"tokens": 4}
    counted, counted_as = "tokens", "visual tokens"

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return tensors and settings from MQT-LLaVA's `query_abstractor.bin`; its positions are computed here."""
        own = {key.rpartition("query_abstractor.")[2]: value for key, value in state.items()}
        return {key: own[key] for key in own.keys() - {"pos_embed"}}, {"tokens": len(own["query"])}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        assert isinstance(backbone, VisionLLM)
        patches, width = backbone.patch_shape()
        heads, side = self.config.heads or max(1, width // _HEAD), math.isqrt(patches)
        if width % heads or width % 4 or side**2 != patches:
            raise AdaptError(
                f"mqt: {backbone.describe()} has {patches} patches of {width} numbers, and heads is {heads}; expected "
                "a square of patches, and numbers that 4 and the heads divide: set method.heads"
            )
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.config.tokens, width), std=_STD))
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        nn.init.trunc_normal_(self.attn.out_proj.weight, std=_STD)
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(width, eps=_EPS) for _ in range(3))
        target = backbone.tower("decoder").width
        self.proj = nn.Parameter(target**-0.5 * torch.randn(width, target))
        table = positions(math.isqrt(self.config.tokens), width)
        self.register_buffer("pos_embed", table, persistent=False)
        self.register_buffer("patch_pos", resized(table, side), persistent=False)
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        patches = context.tokens("vision").to(self.query.dtype)
        return [Tokens(self.tokens(patches, self._number())[:, None])]

    def tokens(self, patches: Tensor, number: int) -> Tensor:
        """Return the first `number` visual tokens `(b, number, d)` of images with patches `(b, p, w)`."""
        query = self.ln_q(self.query[:number] + self.pos_embed[:number]).expand(len(patches), -1, -1)
        seen = self.patch_pos if self.config.keys == "positions" else patches + self.patch_pos
        keys = self.ln_k(seen).expand(len(patches), -1, -1)
        pooled, _ = self.attn(query, keys, self.ln_v(patches), need_weights=False)
        return pooled @ self.proj

    @property
    def drawn(self) -> tuple[int, ...]:
        """The numbers of tokens that training draws from."""
        return self.config.drawn or tuple(range(2, self.config.tokens + 1, 2)) or (1,)

    def check_at_use(self, settings: MQTAtUse) -> None:
        if (settings.tokens or 1) > self.config.tokens:
            raise AdaptError(
                f"tokens is {settings.tokens}; expected at most {self.config.tokens}, the number of queries"
            )

    def _number(self) -> int:
        if not self.training:
            return self.at_use.tokens or self.config.tokens
        return self.drawn[int(torch.randint(len(self.drawn), ()))]

    @property
    def compared(self) -> tuple[int, ...]:
        return powers(1, self.config.tokens)


def positions(side: int, width: int) -> Tensor:
    """Return the sine table `(side^2, width)` of a grid, rounded to half precision, as the published one is stored.

    Its quarters are sines and cosines of the column, then of the row.
    """
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None].double() * frequencies for place in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)
    return table.half().float()


def resized(table: Tensor, side: int) -> Tensor:
    """Return a square grid's table `(s^2, w)` at the places of another grid of `side` rows, `(side^2, w)`."""
    image = table.T.unflatten(-1, (math.isqrt(len(table)), -1))[None]
    return F.interpolate(image, (side, side), mode="bicubic", align_corners=False)[0].flatten(1).T.contiguous()
