"""The family of ViLT and BridgeTower models, which encode an image together with a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family

if TYPE_CHECKING:
    from adapt.backbones.base import Backbone


class FusionEncoders(Family):
    name = "fusion_encoders"
    model_types: ClassVar = {
        "vilt": ("ViltForQuestionAnswering", "ViltModel"),
        "bridgetower": ("BridgeTowerModel",),
    }

    def build(self, model: Any, processor: Any, name: str | None) -> Backbone:
        from adapt.backbones import fusion

        build = fusion.build_vilt if model.config.model_type == "vilt" else fusion.build_bridgetower
        return build(model, processor, name)
