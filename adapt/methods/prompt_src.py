"""Self-regulating prompts: deep prompts in both towers, held to the frozen model in features and answers.

Paper: Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023 (PromptSRC).
Reference: PromptSRC `bb95c77`, `trainers/promptsrc.py`.
Deviations:
* IVLP's.
* The Gaussian average over epochs is the training's, `train.average: {gaussian: {mean: 15, std: 1}}`: recipes set it.
* The frozen model reads one template unless `templates` are given; the recipes name the reference's sixty.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, Terms
from adapt.methods.ivlp import IVLP, IVLPConfig
from adapt.methods.zero_shot import Templates
from adapt.prompts import several


class PromptSRCConfig(IVLPConfig):
    n_ctx_text: int = Field(default=4, ge=1)
    n_ctx_vision: int = Field(default=4, ge=1)
    depth_text: int = Field(default=9, ge=1)
    depth_vision: int = Field(default=9, ge=1)
    text_weight: float = Field(default=25.0, ge=0)
    """Of the mean distance of class features to the frozen ones, entry by entry."""
    image_weight: float = Field(default=10.0, ge=0)
    """The same of image features."""
    templates: Templates = "a photo of a {}."
    """The hand-written prompts of the frozen model, averaged before they get unit length."""


class PromptSRC(IVLP):
    """`PromptSRC(n_ctx_text, n_ctx_vision, depth_text, depth_vision)` trains what IVLP does."""

    name = "prompt_src"
    title = "PromptSRC (Khattak et al., ICCV 2023)"
    Config = PromptSRCConfig

    def loss(self, step: ImageStep) -> Terms:
        texts = F.normalize(step.frozen_class_features(several(self.config.templates), "raw"), dim=-1)
        known = step.cosine_logits(texts, step.frozen_features)
        return super().loss(step) | {
            "text": self.config.text_weight * F.l1_loss(step.class_features, texts),
            "image": self.config.image_weight * F.l1_loss(step.features, step.frozen_features),
            "answers": divergence(step.logits, known),
        }


def divergence(logits: Tensor, known: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of answers `(b, n)` from known ones, a mean over images and classes."""
    log_p, log_q = logits.float().log_softmax(-1), known.float().log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).mean()
