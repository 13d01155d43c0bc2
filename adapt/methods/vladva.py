"""VladVA: a vision-language model as a dual encoder, by LoRA that learns to contrast and to describe at the same time.

Paper: Ouali et al., VladVA: Discriminative Fine-tuning of LVLMs, CVPR 2025.
Our reading: the authors published no code. The paper's abstract and its tables, as quoted by others, were available.
Deviations:
* Rank, places, rates and the weight of the next-token loss were not found; they are ours.
* Soft prompts beside LoRA are left out. In the paper's ablation both together gain 0.5 points of recall over LoRA.
* A long caption is learned in words where the data has one (the column `rephrased`), or else the caption itself.
* Large batches are encoded in parts, whose activations are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adapt.backbones.base import Backbone
from adapt.backbones.embedding import EmbeddingVLM
from adapt.backbones.tower import Tower, TowerName
from adapt.common.errors import AdaptError
from adapt.edits import Edit
from adapt.methods.base import Context, PairStep, Terms
from adapt.methods.lora import Projections
from adapt.methods.svlc import SVLC, SVLCConfig


class VladVAConfig(SVLCConfig):
    published: ClassVar[dict[str, object]] = {"rank": 16, "alpha": 8.0, "dropout": 0.0, "input_gradient": True}
    projections: Projections = "all"
    """The adapted projections of the decoder: names, a string of the letters q k v o, or all."""
    only = "text"
    towers: tuple[TowerName, ...] = ("text",)
    """The decoder, through which images pass as well."""
    describes: float = Field(default=1.0, ge=0)
    """The weight of the next-token loss of captions."""
    asked: str = "Describe the image."
    """The question to which a caption is the answer."""
    twins: bool = False
    """Whether captions get hard negatives, as `svlc` makes them; ours."""
    at_once: int | None = Field(default=None, ge=1)
    """The number of images that are encoded at once; null encodes all images of a batch together."""


class VladVA(SVLC):
    """LoRA of the decoder that images and texts share. `VladVA(rank)` trains `text.BLOCK.PROJECTION.lora_A, lora_B`."""

    name = "vladva"
    title = "VladVA, our reading (Ouali et al., CVPR 2025)"
    Config = VladVAConfig
    learns_any_step = True
    reads = frozenset({"images"})
    example = {"rank": 2}

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({"text", "vision"})

    def build(self, backbone: Backbone, class_names: Any) -> None:
        if not isinstance(backbone, EmbeddingVLM):
            raise AdaptError(
                f"vladva adapts a vision-language model that serves as a dual encoder, and {backbone.describe()} is "
                "another one: name it embed:BACKBONE, such as embed:mini-vlm"
            )
        super().build(backbone, class_names)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return super().edits(replace(tower, name="text"), context)

    def loss(self, step: Any) -> Terms:
        if self.config.at_once and torch.is_grad_enabled():
            step.features = _in_turn(step.model.image_features, self.config.at_once, step.images)
        terms: Terms = super().loss(step) if self.config.twins else step.task_loss()
        if isinstance(step, PairStep) and self.config.describes:
            terms |= {"captions": self.config.describes * self.captions(step)}
        return terms

    def captions(self, step: PairStep) -> Tensor:
        """Return the mean cross-entropy of the captions' tokens, as answers to a question about their images."""
        backbone: Any = step.model.backbone
        long = [long or short for long, short in zip(step.rephrased, step.texts, strict=True)]

        def of_some(rows: Tensor) -> Tensor:
            images, texts = step.images[rows], [long[row] for row in rows.tolist()]
            losses: Tensor = step.model.under_edits(
                "vision", lambda: backbone.caption_losses(images, texts, self.config.asked)
            )
            return losses

        return _in_turn(of_some, self.config.at_once or len(long), torch.arange(len(long))).mean()


def _in_turn(compute: Callable[[Tensor], Tensor], size: int, rows: Tensor) -> Tensor:
    """Return `compute` of all rows, `size` at a time; each part is computed again in the backward pass."""
    parts = rows.split(size)
    if len(parts) == 1:
        return compute(rows)
    return torch.cat([checkpoint(compute, part, use_reentrant=False) for part in parts])
