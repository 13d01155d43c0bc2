"""Self-distillation: a vision tower learns classes by their texts, held to what it saw before; no cross-entropy.

Paper: Addepalli et al., Leveraging Vision-Language Models for Improving Domain Generalization in Image Classification,
CVPR 2024 (VL2V-SD, the white box).
Reference: VL2V-ADiP `d442aae`, `domainbed/algorithms/distill_clip.py`, its class of a student that is CLIP's own tower.
Deviations:
* LoRA in the vision tower learns; the reference trains the whole tower.
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
    """Of the loss: what is drawn to the image's feature before training, the rest being drawn to the class's text."""


class VL2VSD(LoRA[ImageStep]):
    """`VL2VSD(image_share)` trains what `LoRA` does, in the vision tower."""

    name = "vl2v_sd"
    title = "VL2V-SD (Addepalli et al., CVPR 2024)"
    serves = ("dual encoder",)  # type: ignore[assignment]
    Config = VL2VSDConfig
    tasks = frozenset({"classes"})
    weighs_classes = False
    example = {}

    def loss(self, step: ImageStep) -> Terms:
        return drawn_to(step, self.config.image_share)
