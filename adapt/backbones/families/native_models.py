"""The family of native vision-language models: a vision tower, a connector and a decoder that were trained together."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import missing

if TYPE_CHECKING:
    from adapt.backbones.native import NativeVLM


class NativeModels(Family):
    name = "native_models"
    model_types: ClassVar = {
        "gemma3": ("Gemma3ForConditionalGeneration",),
        "idefics3": ("Idefics3ForConditionalGeneration",),
        "internvl": ("InternVLForConditionalGeneration",),
        "llava": ("LlavaForConditionalGeneration",),
        "llava_next": ("LlavaNextForConditionalGeneration",),
        "llava_onevision": ("LlavaOnevisionForConditionalGeneration",),
        "paligemma": ("PaliGemmaForConditionalGeneration",),
        "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration",),
        "qwen2_vl": ("Qwen2VLForConditionalGeneration",),
        "qwen3_vl": ("Qwen3VLForConditionalGeneration",),
        "smolvlm": ("SmolVLMForConditionalGeneration",),
    }
    whole_processor = True

    def check_libraries(self, model_type: str) -> None:
        if model_type == "smolvlm" and find_spec("num2words") is None:
            raise missing("SmolVLM's processor", "num2words", "vlm")

    def build(self, model: Any, processor: Any, name: str | None) -> NativeVLM:
        from adapt.backbones import native_parts

        return native_parts.build(model, processor, name)
