"""The family of transformers' vision models, which encode images and read no text: DINOv2, DINOv3, ViT, RADIO, ..."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    from adapt.backbones.vision_encoder import VisionEncoder


class VisionModels(Family):
    name = "vision_models"
    model_types: ClassVar = {
        "aimv2_vision_model": ("Aimv2VisionModel",),
        "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        "convnext": ("ConvNextModel",),
        "convnextv2": ("ConvNextV2Model",),
        "dinov2": ("Dinov2Model",),
        "dinov2_with_registers": ("Dinov2WithRegistersModel",),
        "dinov3_convnext": ("DINOv3ConvNextModel",),
        "dinov3_vit": ("DINOv3ViTModel",),
        "ijepa": ("IJepaModel",),
        "radio": ("RadioModel",),
        "siglip_vision_model": ("SiglipVisionModel",),
        "vit": ("ViTModel",),
        "vit_msn": ("ViTMSNModel",),
    }
    reads_texts = False
    options: ClassVar = {"vit": {"add_pooling_layer": False}}  # which classifiers and self-supervised ones lack

    def build(self, model: Any, processor: Any, name: str | None) -> VisionEncoder:
        from adapt.backbones import hf

        return hf.build_encoder(model, processor, name)
