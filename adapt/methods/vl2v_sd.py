"""VL2V-SD: self-distillation of a vision tower from class texts and its own frozen features, without cross-entropy.

Paper: Addepalli et al., Leveraging Vision-Language Models for Improving Domain Generalization in Image Classification,
CVPR 2024 (VL2V-SD, the white-box variant).
Reference: VL2V-ADiP `d442aae`, `domainbed/algorithms/distill_clip.py`, its class for CLIP's own tower as student.
Deviations:
* Only LoRA in the vision tower trains; the reference trains the complete tower.
* The loss is the reference's plus one.
"""

from __future__ import annotations

from pydantic import Field

from adapt.backbones.tower import TowerName
from adapt.methods.base import ImageStep, Terms
from adapt.methods.lora import LoRA, PlainLoRAConfig
from adapt.methods.vl2v import drawn_to
from adapt.methods.zero_shot import Template


class VL2VSDConfig(PlainLoRAConfig):
    towers: tuple[TowerName, ...] = ("vision",)
    template: Template = "a photo of a {}"
    image_share: float = Field(default=0.5, ge=0, le=1)
    """The share of the frozen image features in the loss; the rest is that of the classes' text features."""


class VL2VSD(LoRA[ImageStep]):
    """Self-distillation of the vision tower, by LoRA trained on frozen image features and class text features."""

    name = "vl2v_sd"
    title = "VL2V-SD (Addepalli et al., CVPR 2024)"
    serves = ("dual encoder",)
    Config = VL2VSDConfig
    tasks = frozenset({"classes"})
    weighs_classes = False
    example = {}

    def loss(self, step: ImageStep) -> Terms:
        return drawn_to(step, self.config.image_share)
