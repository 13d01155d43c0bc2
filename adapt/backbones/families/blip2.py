"""The family of BLIP-2 models, of which only the vision model and the Q-Former are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adapt.backbones.vision_llm import Eyes


class Blip2(Family):
    name = "blip2"
    forms: ClassVar = {
        "hf:BLIP2+LLM": "BLIP-2's vision encoder for an LLM, e.g. hf:Salesforce/blip2-opt-2.7b+hf:Qwen/Qwen2.5-0.5B",
    }
    model_types: ClassVar = {"blip-2": ("Blip2ForConditionalGeneration",)}
    exact = True

    def model_class(self, name: str) -> type[PreTrainedModel]:
        from adapt.backbones.qformer import Blip2Eyes

        return Blip2Eyes

    def build(self, model: Any, processor: Any, name: str | None) -> Eyes:
        from adapt.backbones.hf import preprocess_of
        from adapt.backbones.qformer import Blip2Eyes, query_tower
        from adapt.backbones.vision_llm import Eyes

        if not isinstance(model, Blip2Eyes):
            raise AdaptError(
                f"from_transformers got a {type(model).__name__}, whose language half adapt does not read: give its "
                "name or folder to adapt.load_backbone, with a language model behind it, as in hf:BLIP2+hf:LLM"
            )
        return Eyes(
            model=model,
            towers={"vision": query_tower(model.qformer)},
            tokenizer=processor.tokenizer,
            preprocess=preprocess_of(processor.image_processor, model.vision_model.embeddings.image_size),
            name=name,
        )
