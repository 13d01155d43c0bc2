"""LLaVA checkpoints of transformers as the source of a vision tower and a language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from adapt.backbones.hf import preprocess_of, vision_tower
from adapt.backbones.vision_llm import Vision, VisionLLM
from adapt.errors import AdaptError


def build(model: LlavaForConditionalGeneration, processor: Any, name: str | None = None) -> VisionLLM:
    """Both towers of a LLaVA model, its projector left out: the `projector` method learns, or imports, one.

    The language model's head joins its blocks again, all weights shared with `model`. Raises AdaptError where patch
    features are of several layers or keep the class token.
    """
    config: Any = model.config
    layer = config.vision_feature_layer
    if not isinstance(layer, int) or layer == 0 or config.vision_feature_select_strategy != "default":
        raise AdaptError(
            f"this LLaVA reads patch features of layers {layer} by {config.vision_feature_select_strategy!r}; "
            "expected one layer but the embeddings, by 'default'"
        )
    tower: Any = model.model.vision_tower
    size = config.vision_config.image_size
    vision = Vision(
        tower, vision_tower(tower, config.vision_config), preprocess_of(processor.image_processor, size), tower
    )
    block = layer if layer < 0 else layer - 1  # layer 0 are the embeddings
    return VisionLLM(vision, _language_model(model), processor.tokenizer, name=name, patch_block=block)


def _language_model(model: Any) -> Any:
    """A causal language model around the blocks and the head that `model` holds."""
    import torch

    with torch.device("meta"):
        llm: Any = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.lm_head = model.lm_head
    return llm.eval()
