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

TEMPLATES = (  # the reference's prompts for the frozen model
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
)


class PromptSRCConfig(IVLPConfig):
    n_ctx_text: int = Field(default=4, ge=1)
    n_ctx_vision: int = Field(default=4, ge=1)
    depth_text: int | None = Field(default=9, ge=1)
    depth_vision: int | None = Field(default=9, ge=1)
    text_weight: float = Field(default=25.0, ge=0)
    """Weight of the mean absolute difference of class features from the frozen ones."""
    image_weight: float = Field(default=10.0, ge=0)
    """The same weight for image features."""
    templates: Templates = TEMPLATES
    """The hand-written prompts of the frozen model, averaged before normalisation."""


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
