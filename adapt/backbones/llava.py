"""Backbones made from LLaVA checkpoints: their vision tower and language model, without the projector between them."""

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
    """Return a `VisionLLM` made of the vision tower and the language model of a LLaVA, without the LLaVA's projector.

    The `projector` method trains or imports the projector. The language model includes its head, and shares all weights
    with `model`. Raises AdaptError if the LLaVA takes patch features from several layers or from the embeddings, keeps
    the class token, or drops a patch.
    """
    config, eyes = model.config, model.model.vision_tower
    vision_config = cast("PreTrainedConfig", config.vision_config)
    tower, layer = vision_tower(eyes, vision_config), config.vision_feature_layer
    patches_alone = "default" if tower.form.pooling == "class" else "full"  # SigLIP has no class token
    if not isinstance(layer, int) or layer == 0 or config.vision_feature_select_strategy != patches_alone:
        raise AdaptError(
            f"this LLaVA has vision_feature_layer {layer} and vision_feature_select_strategy "
            f"{config.vision_feature_select_strategy!r}; expected one layer other than 0, with strategy "
            f"{patches_alone!r}: use another LLaVA"
        )
    vision = Vision(eyes, tower, preprocess_of(processor.image_processor, vision_config.image_size), eyes)
    block = layer if layer < 0 else layer - 1  # layer 0 is the embeddings
    return VisionLLM(vision, _language_model(model), processor.tokenizer, name=name, patch_block=block)


def _language_model(model: LlavaForConditionalGeneration) -> PreTrainedModel:
    """Return a causal language model that is made of LLaVA's decoder and `lm_head` and shares all their weights."""
    import torch

    with torch.device("meta"):
        llm: PreTrainedModel = AutoModelForCausalLM.from_config(model.config.text_config, trust_remote_code=False)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.lm_head = model.lm_head
    llm.training = False  # not recursively: its parts are the user's
    return llm
