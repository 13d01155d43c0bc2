"""The family of dual encoders whose image half is used alone, without the class names."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class ClipImages(Family):
    name = "clip_images"
    prefix = "vision:"
    forms: ClassVar = {
        "vision:BACKBONE": "the image half of a CLIP or SigLIP from above, without texts, e.g. vision:mini-clip",
    }
    reads_texts = False

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.base import DualEncoder
        from adapt.backbones.load import of_one_model
        from adapt.backbones.vision_encoder import VisionEncoder

        whole = of_one_model(spec.removeprefix(self.prefix), device)
        if not isinstance(whole, DualEncoder):
            raise AdaptError(f"{whole.describe()} is a {whole.kind}; expected a CLIP or SigLIP after {self.prefix}")
        return VisionEncoder.of(whole, spec)
