"""LoRA on both towers, so that pairs of image and text that are of one entity are near: records to be linked.

Paper: Arora, Yang, Jheng and Dell, Linking Representations with Multimodal Contrastive Learning, 2023 (CLIPPINGS).
Reference: CLIPPINGS `11d2a0a`, `train_clippings.py`, with the SupCon loss of pytorch-metric-learning (checked against
2.9.0).
Deviations:
* LoRA learns; the reference trains all of CLIP.
* Where no pair of the data names an entity, images and texts are contrasted, as in the reference's first stage; a
  recipe's `start` takes what that left into the second one. The scale of the first stage's logits is constant.
* Entities meet in batches by chance. The reference can also put each entity beside the nearest ones to its first
  record, as they were before training (`train_hardneg`), draws its records with repetition, and leaves others out.
* A mean of image and text alone; the reference's perceptron, which it gave up itself, is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adapt.errors import AdaptError
from adapt.methods.base import PairStep, Terms, Training
from adapt.methods.base.traits import GroupsEntities, PoolsPairs
from adapt.methods.lora import LoRA, PlainLoRAConfig


class CLIPPINGSConfig(PlainLoRAConfig):
    projections: tuple[Any, ...] = ("q", "k", "v", "out", "fc1", "fc2")
    """Names, or a string of the letters q k v o."""
    image_share: float = Field(default=0.5, ge=0, le=1)
    """The image's share in a pair, beside the text."""
    temperature: float = Field(default=0.1, gt=0)
    """Cosines of pairs are divided by it."""
    together: int = Field(default=3, ge=2)
    """How many pairs of one entity follow each other in training, if it has as many (m)."""


class CLIPPINGS(LoRA[PairStep], PoolsPairs, GroupsEntities):
    """`CLIPPINGS(image_share, temperature)` trains what `LoRA` does, on pairs of which some are of one entity."""

    name = "clippings"
    title = "CLIPPINGS (Arora et al., 2023)"
    serves = ("dual encoder",)  # type: ignore[assignment]
    Config = CLIPPINGSConfig
    learns_any_step = True
    example: ClassVar[dict[str, Any]] = {"projections": "qkvo"}
    _links = True  # whether some pairs of the training are of one entity

    @property
    def together(self) -> int:
        size: int = self.config.together
        return size

    def pool(self, features: Tensor, text_features: Tensor) -> Tensor:
        share = self.config.image_share
        return share * features + (1 - share) * text_features

    def prepare(self, training: Training) -> None:
        sizes = Counter(item.unit for item in training.items("train") if item.unit)
        self._links = bool(sizes)
        if self._links and max(sizes.values()) == 1:
            raise AdaptError(
                f"clippings: each of the {len(sizes):,} training pairs that name an entity is of an "
                "entity of its own, so that none belong together: name the same entity in two lines or more"
            )

    def loss(self, step: Any) -> Terms:
        if not (isinstance(step, PairStep) and self._links):
            return super().loss(step)
        assert step.labels is not None
        pairs, same = step.pair_features.float(), step.labels[:, None] == step.labels
        with torch.autocast(pairs.device.type, enabled=False):  # near pairs are told apart by small differences
            logits = pairs @ pairs.T / self.config.temperature
        return {"supervised_contrast": supervised_contrast(logits, same)}


def supervised_contrast(logits: Tensor, same: Tensor) -> Tensor:
    """The mean over what has another of its kind of how unlikely such are taken among all others (SupCon).

    Of logits `(b, b)`, and of which are the `same` `(b, b)`; nothing is compared with itself. 0 where all are of one
    kind, or each of its own.
    """
    itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
    right = same & ~itself
    taken = logits.masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(~right, 0)
    each = -taken.sum(-1) / right.sum(-1).clamp_min(1)
    counted = right.any(-1) & ~same.all()
    return (each * counted).sum() / counted.sum().clamp_min(1)
