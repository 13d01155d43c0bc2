"""Small vision-only backbones with seeded random weights, one of every kind that adapt maps. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import tiny_natives
import torch
import transformers

from adapt import Backbone
from adapt.backbones.native_eyes import NativeEyes

SIZE = 32
_SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE}
PLAIN = _SMALL | {"patch_size": 16, "intermediate_size": 64}
_DINO2 = _SMALL | {"patch_size": 8, "mlp_ratio": 2, "layerscale_value": 0.5}
_DINO3 = PLAIN | {"num_register_tokens": 2, "layerscale_value": 0.5}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "dinov2": lambda: (transformers.Dinov2Model, transformers.Dinov2Config(**_DINO2)),
    "dinov2_swiglu": lambda: (transformers.Dinov2Model, transformers.Dinov2Config(**_DINO2, use_swiglu_ffn=True)),
    "dinov2_with_registers": lambda: (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig(**_DINO2, num_register_tokens=2),
    ),
    "dinov3_vit": lambda: (transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(**_DINO3)),
    "dinov3_convnext": lambda: (transformers.DINOv3ConvNextModel, transformers.DINOv3ConvNextConfig(**_STAGES)),
    "convnext": lambda: (transformers.ConvNextModel, transformers.ConvNextConfig(**_STAGES)),
    "convnextv2": lambda: (transformers.ConvNextV2Model, transformers.ConvNextV2Config(**_STAGES)),
    "vit": lambda: (transformers.ViTModel, transformers.ViTConfig(**PLAIN)),
    "vit_msn": lambda: (transformers.ViTMSNModel, transformers.ViTMSNConfig(**PLAIN)),
    "ijepa": lambda: (transformers.IJepaModel, transformers.IJepaConfig(**PLAIN)),
    "radio": lambda: (transformers.RadioModel, transformers.RadioConfig(**_SMALL, patch_size=16, max_img_size=64)),
    "siglip": lambda: (transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**PLAIN)),
    "clip": lambda: (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**PLAIN)),
    "aimv2": lambda: (transformers.Aimv2VisionModel, transformers.Aimv2VisionConfig(**PLAIN)),
}
_TIMM: dict[str, dict[str, Any]] = {
    "timm_vit": {"model_name": "test_vit", "img_size": SIZE, "reg_tokens": 2, "init_values": 0.5},
    "timm_mean": {"model_name": "test_vit", "img_size": SIZE, "global_pool": "avg"},
    "timm_dinov3": {
        "model_name": "vit_small_patch16_dinov3",
        "img_size": SIZE,
        "depth": 2,
        "embed_dim": 48,
        "num_heads": 3,
    },
    "timm_convnext": {"model_name": "test_convnext"},
}
NATIVE = ("last", "heads")  # of a native vision-language model, which read pictures of any size
KINDS = (*_MAKERS, *_TIMM, *NATIVE)
_OF_OTHER_FORMS = ("dinov2_swiglu", "dinov3_vit", "radio", "aimv2")  # whose blocks the fast path does not take
WITHOUT_BLOCKS = ("dinov3_convnext", "convnext", "convnextv2", "timm_dinov3", "timm_convnext", *NATIVE)
FAST = tuple(kind for kind in KINDS if kind not in (*_OF_OTHER_FORMS, *WITHOUT_BLOCKS))


def image_processor() -> Any:
    """An image processor for squares of `SIZE` pixels."""
    size = {"height": SIZE, "width": SIZE}
    return transformers.ViTImageProcessor(size=size, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def model(kind: str) -> Any:
    """A fresh model of one kind, in evaluation mode, with the same values at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind in _TIMM:
            made = timm.create_model(**_TIMM[kind], num_classes=0)
        else:
            architecture, config = _MAKERS[kind]()
            made = architecture(config)
        for parameter in made.parameters():  # off zero, where biases and tokens start
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def backbone(kind: str) -> Backbone:
    """A fresh backbone of one kind."""
    if kind in NATIVE:
        return NativeEyes(tiny_natives.backbone("smolvlm"), "heads" if kind == "heads" else "last")
    made = model(kind)
    return Backbone.from_timm(made) if kind in _TIMM else Backbone.from_transformers(made, image_processor())
