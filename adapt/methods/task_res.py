"""TaskRes: task residuals, one learned vector per class, added to the class features of hand-written prompts.

Paper: Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023 (TaskRes).
Reference: TaskRes `5195359`, `trainers/taskres.py`.
Deviations:
* Underscores of class names read as spaces, as in every method.
* The enhanced base, a text projection whose earlier training was never published, is left out.
* The class features of the templates are computed when needed, and not saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.methods.base import ImageStep, Method, MethodConfig
from adapt.methods.base.method import no_prompts
from adapt.methods.zero_shot import Templates
from adapt.prompts import several


class TaskResConfig(MethodConfig):
    alpha: float = Field(default=0.5, gt=0)
    """Weight of the residuals added to class features, which keep the length that the text tower gives them."""
    template: Templates = "a photo of a {}."
    """One template, or several whose features are averaged before normalisation."""


class TaskRes(Method[ImageStep]):
    """Trainable residuals of the class features, `text_feature_residuals` `(n_classes, e)`, initialised to zero."""

    name = "task_res"
    title = "TaskRes (Yu et al., CVPR 2023)"
    Config = TaskResConfig
    per_class = True
    prompts = no_prompts  # the template is read by the frozen model alone

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        residuals = torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device)
        self.text_feature_residuals = nn.Parameter(residuals)

    def logits(self, step: ImageStep) -> Tensor:
        base = step.frozen_class_features(several(self.config.template), "raw")
        return step.cosine_logits(F.normalize(base + self.config.alpha * self.text_feature_residuals, dim=-1))
