"""Mod-X: continual learning by LoRA, which preserves the old model's similarities of images and texts on new data.

Paper: Ni et al., Continual Vision-Language Representation Learning with Off-Diagonal Information, ICML 2023 (Mod-X).
Reference: Mod-X `a6a2f6c`, `ModX_Training/continue_train_model.py`.
Deviations:
* Only LoRA trains, and the old model is an earlier adapter (the recipe's `start`), or else the backbone; the reference
  trains all of CLIP, and keeps a full copy as the old model.
* The scale of the logits is constant.
* For classes, our reading: rows are images and columns are the texts of classes, in one direction.

Despite the title, and as in the reference, complete rows are compared, the diagonal included. The loss is a weighted
sum over rows, so a weight does not carry over to another batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, PairStep, Terms, Training
from adapt.methods.base.traits import StandsAlone
from adapt.methods.lora import LoRA, PlainLoRAConfig


class ModXConfig(PlainLoRAConfig):
    keep: float = Field(default=20.0, ge=0)
    """Weight of the loss that preserves the rows that the old model gets right (alpha)."""


class ModX(LoRA[PairStep], StandsAlone):
    """LoRA for continual learning. `ModX(keep)` trains a LoRA that preserves an old model's image-text cosines."""

    name = "modx"
    title = "Mod-X (Ni et al., ICML 2023)"
    serves = ("dual encoder",)
    Config = ModXConfig
    tasks = LoRA.tasks - {"translations"}  # which its loss does not read
    example = {}
    _old: tuple[ModX, ...] = ()  # its state before the first step; in a tuple, because a submodule would be saved

    def prepare(self, training: Training) -> None:
        old = type(self)(**self.config.model_dump())
        old.absent = self.absent
        old.build(training.model.backbone, training.model.class_names)
        old.load_state_dict(self.state_dict())
        self._old = (old.requires_grad_(False).eval(),)

    def finish(self, training: Training) -> None:
        self._old = ()

    def loss(self, step: Any) -> Terms:
        terms = super().loss(step)
        if not self._old:  # outside training there is no old model
            return terms
        with torch.no_grad():
            old = cosines(step.under(self._old[0]))
        new = cosines(step)
        if isinstance(step, PairStep):
            right = torch.arange(len(new), device=new.device)
            divergence = (row_divergence(new, old, right) + row_divergence(new.T, old.T, right)) / 2
        else:
            divergence = row_divergence(new, old, step.labels)
        return terms | {"kept": self.config.keep * divergence}


def cosines(step: ImageStep) -> Tensor:
    """Return the cosine similarities `(b, n)` of a batch's images with the batch's texts, or with the classes."""
    texts = step.text_features if isinstance(step, PairStep) else step.class_features
    return step.features.float() @ texts.float().T


def row_divergence(new: Tensor, old: Tensor, right: Tensor) -> Tensor:
    """Return the KL divergence of new from old cosines `(b, n)`, summed over rows where the old model is right."""
    known = old.argmax(-1) == right
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    divergence = (log_old.exp() * (log_old - log_new)).sum(-1)
    return (divergence * known).sum()
