"""A vision tower and a language model, each by its own name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class TwoModels(Family):
    name = "two_models"
    forms: ClassVar = {
        "mini-clip+mini-lm": "the bundled CLIP's eyes for the bundled language model (offline)",
        "VISION+LLM": "a CLIP from above, and a decoder of transformers, e.g. mini-clip+hf:Qwen/Qwen2.5-0.5B",
    }

    def claims(self, spec: str) -> bool:
        vision, _, llm = spec.partition("+")
        return bool(vision and llm) and not Path(spec).is_dir()

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.language import with_language_model
        from adapt.backbones.load import of_one_model

        vision, _, llm = spec.partition("+")
        return with_language_model(of_one_model(vision, device), llm, device, name=spec)
