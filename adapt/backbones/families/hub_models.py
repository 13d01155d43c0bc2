"""The family of transformers models, named by their hub repository, or given as folders in transformers' format.

It builds those that encode an image by itself, or together with a text (CLIP, SigLIP, ViLT, BridgeTower); other
families build the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.common import hub

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class HubModels(Family):
    name = "hub_models"
    prefix = "hf:"
    forms: ClassVar = {
        "hf:NAME_OR_PATH": "a CLIP, SigLIP, ViLT, SmolVLM, Qwen-VL, Gemma 3, ..., e.g. hf:openai/clip-vit-base-patch16",
        "FOLDER": "a folder in open_clip's or transformers' format",
    }
    model_types: ClassVar = {
        "clip": ("CLIPModel",),
        "siglip": ("SiglipModel",),
        "vilt": ("ViltForQuestionAnswering", "ViltModel"),
        "bridgetower": ("BridgeTowerModel",),
    }

    def meant(self, spec: str) -> str | None:
        return self.prefix + spec if hub.REPOSITORY.fullmatch(spec) else None

    def reads_texts_of(self, spec: str) -> bool:
        from adapt.backbones import transformers_models

        return transformers_models.reads_texts(spec.removeprefix(self.prefix))

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones import transformers_models

        return transformers_models.load(spec.removeprefix(self.prefix), spec, device.type != "meta")

    def claims_folder(self, path: Path) -> bool:
        return (path / "config.json").is_file() and not (path / "open_clip_config.json").is_file()

    def load_folder(self, path: Path, name: str | None, tensors: bool = True) -> Backbone:
        from adapt.backbones import transformers_models

        return transformers_models.load(str(path), name, tensors)

    def build(self, model: Any, processor: Any, name: str | None) -> Backbone:
        if model.config.model_type in ("clip", "siglip"):
            from adapt.backbones import hf

            return hf.build(model, processor, name)
        from adapt.backbones import fusion

        build = fusion.build_vilt if model.config.model_type == "vilt" else fusion.build_bridgetower
        return build(model, processor, name)
