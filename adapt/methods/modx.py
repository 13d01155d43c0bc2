"""LoRA that goes on from an earlier adapter and keeps how its images and texts compared: new data, old knowledge.

Paper: Ni et al., Continual Vision-Language Representation Learning with Off-Diagonal Information, ICML 2023 (Mod-X).
Reference: Mod-X `a6a2f6c`, `ModX_Training/continue_train_model.py`.
Deviations:
* LoRA learns, and an earlier adapter (the recipe's `start`) is the old model; the reference trains all of CLIP, and
  keeps all of the old one. Without an earlier adapter the old model is the backbone.
* The scale of the logits is constant.
* Of classes, our reading: rows are images and columns the classes' texts, in one direction.

As in the reference, whole rows are compared, the diagonal included, whatever the title says, and a sum over the rows is
weighted: the weight does not carry over to another batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import PairStep, Terms, Training
from adapt.methods.base.traits import StandsAlone
from adapt.methods.lora import LoRA, PlainLoRAConfig


class ModXConfig(PlainLoRAConfig):
    keep: float = Field(default=20.0, ge=0)
    """Weight of what keeps the rows that the old model gets right (alpha)."""


class ModX(LoRA[PairStep], StandsAlone):
    """`ModX(keep)` trains what `LoRA` does, held to what it was before the first step."""

    name = "modx"
    title = "Mod-X (Ni et al., ICML 2023)"
    serves = ("dual encoder",)  # type: ignore[assignment]
    Config = ModXConfig
    example = {}
    _old: tuple[ModX, ...] = ()  # what it was before the first step; in a tuple, for a child would be saved

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
        if not self._old:  # outside of a training there is nothing to keep
            return terms
        with torch.no_grad():
            old = cosines(step.under(self._old[0]))
        new = cosines(step)
        if isinstance(step, PairStep):
            right = torch.arange(len(new), device=new.device)
            apart = (row_divergence(new, old, right) + row_divergence(new.T, old.T, right)) / 2
        else:
            apart = row_divergence(new, old, step.labels)
        return terms | {"kept": self.config.keep * apart}


def cosines(step: Any) -> Tensor:
    """Those of a batch's images `(b, n)` with its texts, or with the classes."""
    texts = step.text_features if isinstance(step, PairStep) else step.class_features
    return step.features.float() @ texts.float().T


def row_divergence(new: Tensor, old: Tensor, right: Tensor) -> Tensor:
    """KL of the new rows' softmax from the old, summed over the rows `(b, n)` whose largest old cosine is `right`."""
    known = old.argmax(-1) == right
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    apart = (log_old.exp() * (log_old - log_new)).sum(-1)
    return (apart * known).sum()
