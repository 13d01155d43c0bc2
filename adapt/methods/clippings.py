"""CLIPPINGS: multimodal record linkage by LoRA on both towers, which brings pairs of one entity together.

Paper: Arora, Yang, Jheng and Dell, Linking Representations with Multimodal Contrastive Learning, 2023 (CLIPPINGS).
Reference: CLIPPINGS `11d2a0a`, `train_clippings.py`, with the SupCon loss of pytorch-metric-learning (checked against
2.9.0).
Deviations:
* Only LoRA trains; the reference trains all of CLIP.
* If no pair of the data names an entity, images and texts are contrasted, as in the reference's first stage; a
  recipe's `start` passes the result to the second stage. The first stage's logit scale is constant.
* Batches combine entities at random. The reference can also put each entity beside those nearest to its first record
  before training (`train_hardneg`), drawing records with repetition and leaving others out.
* Image and text are averaged; the reference's perceptron, which its authors abandoned, is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base import PairStep, Terms, Training
from adapt.methods.base.traits import GroupsEntities, PoolsPairs
from adapt.methods.lora import LoRA, PlainLoRAConfig, Projections


class CLIPPINGSConfig(PlainLoRAConfig):
    projections: Projections = ("q", "k", "v", "out", "fc1", "fc2")
    """Names, a string of the letters q k v o, or all that each tower has."""
    image_share: float = Field(default=0.5, ge=0, le=1)
    """The image's share in the feature of a pair."""
    temperature: float = Field(default=0.1, gt=0)
    """The divisor of the cosines of pairs."""
    together: int = Field(default=3, ge=2)
    """The number of adjacent pairs of one entity in training, if it has that many (m)."""


class CLIPPINGS(LoRA[PairStep], PoolsPairs, GroupsEntities):
    """Record linkage by LoRA with a contrastive loss that brings image-text pairs of the same entity together."""

    name = "clippings"
    title = "CLIPPINGS (Arora et al., 2023)"
    serves = ("dual encoder",)
    Config = CLIPPINGSConfig
    learns_any_step = True
    tasks = LoRA.tasks - {"translations"}  # which its loss does not read
    example = {"projections": "qkvo"}
    _links = True  # whether some training pairs share an entity

    @property
    def together(self) -> int:
        return int(self.config.together)

    def pool(self, features: Tensor, text_features: Tensor) -> Tensor:
        share = self.config.image_share
        return share * features + (1 - share) * text_features

    def prepare(self, training: Training) -> None:
        sizes = Counter(item.unit for item in training.items("train") if item.unit)
        self._links = bool(sizes)
        if self._links and max(sizes.values()) == 1:
            raise AdaptError(
                f"clippings learns from pairs of the same entity, but each of the {len(sizes):,} entities in the "
                "training data has only one pair: add a second pair to at least one entity"
            )

    def loss(self, step: Any) -> Terms:
        if not (isinstance(step, PairStep) and self._links):
            return super().loss(step)
        assert step.labels is not None
        pairs, same = step.pair_features.float(), step.labels[:, None] == step.labels
        with torch.autocast(pairs.device.type, enabled=False):  # similar pairs differ by little
            logits = pairs @ pairs.T / self.config.temperature
        return {"supervised_contrast": supervised_contrast(logits, same)}


def supervised_contrast(logits: Tensor, same: Tensor) -> Tensor:
    """Return the supervised contrastive loss (SupCon) of logits `(b, b)`, where `same` `(b, b)` marks positive pairs.

    The loss is the mean over rows with a positive other than the row itself. The loss is 0 if there are no such rows,
    or if all rows belong to the same entity.
    """
    itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
    right = same & ~itself
    log_p = logits.masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(~right, 0)
    losses = -log_p.sum(-1) / right.sum(-1).clamp_min(1)
    counted = right.any(-1) & ~same.all()
    return (losses * counted).sum() / counted.sum().clamp_min(1)
