"""KgCoOp: knowledge-guided context optimisation, which keeps class features near those of hand-written prompts.

Paper: Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023 (KgCoOp).
Reference: KgCoOp `c43ccc3`, `KgCoOp/trainers/kgcoop.py`.
Deviations:
* As in CoOp here, `ctx_init` is counted in tokens, and the context is fp32 whatever the backbone's precision.
* The backbone itself reads the hand-written prompts; the reference loads a second CLIP for them, in fp16.
* The reference also builds and saves an unused bias and network; only `ctx` is imported from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, Terms
from adapt.methods.base.traits import Imported
from adapt.methods.coop import CoOp, CoOpConfig
from adapt.methods.zero_shot import Template


class KgCoOpConfig(CoOpConfig):
    ctx_init: str = "a photo of a"
    """Words whose embeddings the context starts from; empty draws it from N(0, 0.02)."""
    weight: float = Field(default=8.0, ge=0)
    """Weight of the distance to the hand-written prompts' class features: one minus the mean cosine over classes."""
    template: Template = "a photo of a {}."
    """The hand-written prompt, with {} for the class name."""


class KgCoOp(CoOp):
    """A learned context kept near hand-written prompts. `KgCoOp(n_ctx, weight, ...)` trains `ctx` `(n_ctx, d)`."""

    name = "kgcoop"
    title = "KgCoOp (Yao et al., CVPR 2023)"
    Config = KgCoOpConfig
    learns_any_step = True
    example = {}

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        return super().published({"ctx": state["ctx"]}, given)

    def loss(self, step: ImageStep) -> Terms:
        hand_written = step.frozen_class_features([self.config.template])
        apart = 1 - (step.class_features * hand_written).sum(-1).mean()
        return super().loss(step) | {"knowledge": self.config.weight * apart}
