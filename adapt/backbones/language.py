"""A language model of transformers beside the vision tower of a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.sources import BUNDLED, bundled, fetching
from adapt.backbones.transformers_models import whole
from adapt.backbones.vision_llm import VisionLLM
from adapt.errors import AdaptError


def with_language_model(encoder: Backbone, spec: str, device: torch.device, name: str | None = None) -> VisionLLM:
    """The vision tower of `encoder` with the causal language model that `spec` names: hf:NAME, a folder, or mini-lm.

    It keeps the precision of its checkpoint, but fp16 becomes fp32 for a `device` that is the CPU, which is slow in it.
    Raises AdaptError for an encoder that is no CLIP or SigLIP, or a language model that cannot be loaded.
    """
    if not isinstance(encoder, DualEncoder):
        raise AdaptError(f"{encoder.describe()} is a {encoder.family}: the eyes of a language model are a CLIP's")
    llm, tokenizer = _language_model(spec)
    if device.type == "cpu" and llm.dtype == torch.float16:
        llm = llm.float()
    return VisionLLM(encoder, llm, tokenizer, name=name)


def _language_model(spec: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(bundled(spec)) if spec in BUNDLED else spec.removeprefix("hf:")
    if not spec.startswith("hf:") and not Path(source).is_dir():
        raise AdaptError(f"the language model {spec!r} is no folder; give a folder, hf:NAME or mini-lm")
    with fetching(source):
        llm = whole(AutoModelForCausalLM, source, dtype="auto")
        return llm.eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False)
