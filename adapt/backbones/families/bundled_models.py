"""The family of the small models that are installed with adapt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adapt.backbones import families
from adapt.backbones.families.base import Family
from adapt.backbones.sources import BUNDLED, bundled

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class BundledModels(Family):
    name = "bundled_models"
    forms: ClassVar = {
        "mini-clip": "the bundled 64-pixel CLIP of emoji (offline)",
        "mini-clip-half": "a CLIP half as wide as mini-clip, trained separately (offline)",
        "mini-vilt": "the bundled ViLT that answers questions about emoji (offline)",
        "mini-vlm": "the bundled LLaVA that talks about emoji (offline)",
    }

    def claims(self, spec: str) -> bool:
        return spec in BUNDLED

    def load(self, spec: str, device: torch.device) -> Backbone:
        folder = bundled(spec)
        return families.of_folder(folder).load_folder(folder, spec, device.type != "meta")
