"""CTP and TFT: prompts and image features learn from each other, by the parts of the image that belong to each class.

Paper: Long et al., Task-Oriented Multi-Modal Mutual Learning for Vision-Language Models, ICCV 2023 (CTP and TFT).
Reference: none. The code is not public, and only the abstract was available. This is our reading of it, and nothing
here is "CTP + TFT as in the paper". The claims of the abstract, and our choices:

* CoCoOp shifts the context of all classes by the same image-conditioned vector, which weakens their differences.
  Class-aware text prompts (CTP) are enriched with label-related image information: each class, by its features in a
  hand-written template, attends to the image's tokens, and a meta-network maps the result to a shift of its own
  context. The tokens are the output of the vision tower's last block. The attention has one head; both its inputs are
  brought to zero mean and unit variance, and its output to unit length, as CoCoOp's features.
* Text-guided feature tuning (TFT) makes the image branch attend to class-related representation: each class, by the
  features of its prompt, attends to the same tokens, and the result, mapped to the features' width, is added to the
  image's features. So an image has features for each class, and a class's logit depends on no other class.
* The loss is the cross-entropy over the classes.
* The last maps of CTP and TFT start at zero, so the method starts as CoOp. The context starts as CoCoOp's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context
from adapt.methods.base.traits import unpublished
from adapt.methods.cocoop import CoCoOp, CoCoOpConfig
from adapt.methods.zero_shot import Template


class CTPTFTConfig(CoCoOpConfig):
    attention_width: int = Field(default=64, ge=1)
    """The width of the queries and keys with which classes read the image."""
    template: Template = "a photo of a {}."
    """The template with which classes read the image for their prompts; with {} for the class name."""


class CTPTFT(CoCoOp):
    """Prompts and image features that are adapted to each other by attention of classes to image tokens.

    `CTPTFT()` trains `ctx`, `read` and `meta_net` for the prompts, and `guided` and `tuning` for image features.
    """

    name = "ctp_tft"
    title = "CTP + TFT, our reading of the abstract (Long et al., ICCV 2023)"
    Config = CTPTFTConfig
    reads = frozenset({"images", "tokens"})
    published = classmethod(unpublished)  # CoCoOp's checkpoints do not fit

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        features, seen = backbone.embed_dim, self._seen(backbone)
        self.read, self.guided = (ClassAttention(features, seen, self.config.attention_width) for _ in range(2))
        self.tuning = nn.Linear(seen, features, bias=False)
        for last in (*self.meta_net[-1].parameters(), self.tuning.weight):
            nn.init.zeros_(last)
        self.to(backbone.device)

    def _seen(self, backbone: DualEncoder) -> int:
        return backbone.tower("vision").width

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        classes = context.class_features([self.config.template])
        shifts = self.meta_net(self.read(classes.to(self.ctx.dtype), context.tokens("vision").to(self.ctx.dtype)))
        return [Tokens(self.ctx + shifts[:, :, None])]

    def logits(self, step: Any) -> Tensor:
        read = self.guided(step.class_features.to(self.ctx.dtype), step.image_tokens.to(self.ctx.dtype))
        tuned = F.normalize(step.features[:, None] + self.tuning(read), dim=-1)  # (b, n, e)
        logits: Tensor = step.scale * (tuned * step.class_features).sum(-1) + step.bias
        return logits


class ClassAttention(nn.Module):
    """Attention of class features `([b,] n, e)` to image tokens `(b, l, d)`, with unit-length outputs `(b, n, d)`."""

    def __init__(self, class_width: int, token_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(class_width, width, bias=False)
        self.key = nn.Linear(token_width, width, bias=False)

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        classes, tokens = (F.layer_norm(each, each.shape[-1:]) for each in (classes, tokens))
        scores = self.query(classes) @ self.key(tokens).mT
        return F.normalize((scores / self.query.out_features**0.5).softmax(-1) @ tokens, dim=-1)
