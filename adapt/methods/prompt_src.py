"""PromptSRC: self-regulating deep prompts in both towers, kept near the frozen model in features and answers.

Paper: Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023 (PromptSRC).
Reference: PromptSRC `bb95c77`, `trainers/promptsrc.py`.
Deviations:
* All deviations of IVLP.
* The Gaussian average over epochs is set by recipes: `train.average: {gaussian: {mean: 15, std: 1}}`.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, Terms
from adapt.methods.ivlp import IVLP, IVLPConfig
from adapt.methods.zero_shot import Templates
from adapt.prompts import several


def published_templates() -> tuple[str, ...]:
    """Return the reference's sixty prompts for the frozen model, which are the first of CLIP's for ImageNet."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    named = (template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return tuple(dict.fromkeys(("a photo of a {}.", *named)))[:60]


class PromptSRCConfig(IVLPConfig):
    n_ctx_text: int = Field(default=4, ge=1)
    n_ctx_vision: int = Field(default=4, ge=1)
    depth_text: int | None = Field(default=9, ge=1)
    depth_vision: int | None = Field(default=9, ge=1)
    text_weight: float = Field(default=25.0, ge=0)
    """Weight of the mean absolute difference of class features from the frozen ones."""
    image_weight: float = Field(default=10.0, ge=0)
    """The same weight for image features."""
    templates: Templates = Field(default_factory=published_templates)
    """The hand-written prompts of the frozen model, averaged before normalisation; by default the published sixty."""


class PromptSRC(IVLP):
    """Deep prompts `text.I` and `vision.I` for block I of each tower (IVLP), regularised towards the frozen model."""

    name = "prompt_src"
    title = "PromptSRC (Khattak et al., ICCV 2023)"
    serves = ("dual encoder",)
    Config = PromptSRCConfig
    learns_any_step = True
    published_share = 0.75
    example = {"depth_text": 2, "depth_vision": 2, "templates": "a photo of a {}."}

    def loss(self, step: ImageStep) -> Terms:
        texts = F.normalize(step.frozen_class_features(several(self.config.templates), "raw"), dim=-1)
        known = step.cosine_logits(texts, step.frozen_features)
        return super().loss(step) | {
            "text": self.config.text_weight * F.l1_loss(step.class_features, texts),
            "image": self.config.image_weight * F.l1_loss(step.features, step.frozen_features),
            "answers": divergence(step.logits, known),
        }


def divergence(logits: Tensor, known: Tensor) -> Tensor:
    """Return KL(`known` || `logits`) between the softmax of two logits `(b, n)`, averaged over images and classes."""
    log_p, log_q = logits.float().log_softmax(-1), known.float().log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).mean()
