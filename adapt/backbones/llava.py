"""LLaVA checkpoints of transformers as the source of a vision tower and a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from adapt.backbones.hf import preprocess_of, vision_tower
from adapt.backbones.vision_llm import Vision, VisionLLM
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from adapt.backbones.transformers_models import Processor


def build(model: LlavaForConditionalGeneration, processor: Processor, name: str | None = None) -> VisionLLM:
    """Return both towers of a LLaVA model without its projector: the `projector` method learns, or imports, one.

    The language model's head is joined to its blocks again, with all weights shared with `model`. Raises AdaptError if
    patch features come from several layers, keep the class token, or lack a patch.
    """
    config, eyes = model.config, model.model.vision_tower
    vision_config = cast("PreTrainedConfig", config.vision_config)
    tower, layer = vision_tower(eyes, vision_config), config.vision_feature_layer
    patches_alone = "default" if tower.form.pooling == "class" else "full"  # SigLIP has no class token
    if not isinstance(layer, int) or layer == 0 or config.vision_feature_select_strategy != patches_alone:
        raise AdaptError(
            f"this LLaVA reads patch features of layers {layer} by {config.vision_feature_select_strategy!r}; "
            f"expected one layer but the embeddings, by {patches_alone!r}"
        )
    vision = Vision(eyes, tower, preprocess_of(processor.image_processor, vision_config.image_size), eyes)
    block = layer if layer < 0 else layer - 1  # layer 0 is the embeddings
    return VisionLLM(vision, _language_model(model), processor.tokenizer, name=name, patch_block=block)


def _language_model(model: LlavaForConditionalGeneration) -> PreTrainedModel:
    """Return a causal language model around the blocks and the head that `model` holds."""
    import torch

    with torch.device("meta"):
        llm: PreTrainedModel = AutoModelForCausalLM.from_config(model.config.text_config, trust_remote_code=False)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.lm_head = model.lm_head
    llm.training = False  # not recursively: its parts are the user's
    return llm
