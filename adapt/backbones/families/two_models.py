"""The family of vision LLMs made of a vision tower and a language model, named as VISION+LLM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family
from adapt.backbones.sources import BUNDLED, bundled, fetching
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from adapt.backbones.base import Backbone, ImageEncoder
    from adapt.backbones.vision_llm import VisionLLM


class TwoModels(Family):
    name = "two_models"
    forms: ClassVar = {
        "mini-clip+mini-lm": "the bundled CLIP's vision encoder for the bundled language model (offline)",
        "VISION+LLM": "a CLIP from above, and a decoder of transformers, e.g. mini-clip+hf:Qwen/Qwen2.5-0.5B",
        "FIRST&SECOND+LLM": "two encoders of images and a decoder, in quotes, e.g. 'mini-clip&mini-clip-half+mini-lm'",
    }

    def claims(self, spec: str) -> bool:
        vision, _, llm = spec.partition("+")
        native = spec.startswith(("embed:", "last:", "heads:"))
        return bool(vision and llm) and not native and not Path(spec).is_dir()

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.families.joined_encoders import two_encoders
        from adapt.backbones.load import of_one_model

        vision, _, llm = spec.partition("+")
        first, second = two_encoders(vision, device) if "&" in vision else (of_one_model(vision, device), None)
        return with_language_model(first, llm, device, second=second, name=spec)


def with_language_model(
    encoder: Backbone,
    spec: str,
    device: torch.device,
    *,
    second: ImageEncoder | None = None,
    name: str | None = None,
) -> VisionLLM:
    """Return a vision LLM that combines the vision tower of `encoder` with the causal language model `spec`.

    `spec` is hf:NAME, a folder or mini-lm. The language model has the precision of its checkpoint until the whole is
    moved to `device` (see `Backbone.to`). Raises AdaptError if `encoder` encodes no images by itself, or if the
    language model cannot be loaded.
    """
    from transformers import AutoTokenizer

    from adapt.backbones.base import ImageEncoder
    from adapt.backbones.vision_llm import Eyes, VisionLLM

    if not isinstance(encoder, ImageEncoder | Eyes):
        raise AdaptError(
            f"{encoder.describe()} is a {encoder.kind}; expected a CLIP, SigLIP or vision encoder for a language "
            "model, or the eyes of BLIP-2"
        )
    llm, source = language_model(spec, device), _source(spec)
    with fetching(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return VisionLLM(encoder, llm, tokenizer, second=second, name=name)


def language_model(spec: str, device: torch.device) -> PreTrainedModel:
    """Return the causal language model `spec` (hf:NAME, a folder or mini-lm) on the CPU, in its own precision.

    If `device` is the meta device, the model is there, and made from its configuration alone. Raises AdaptError if the
    language model cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from adapt.backbones.transformers_models import whole

    source = _source(spec)
    with fetching(source):
        if device.type != "meta":
            return whole(AutoModelForCausalLM, source, dtype="auto").eval()
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with device:
            made: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return made.eval()


def _source(spec: str) -> str:
    """Return the folder or the hub's name of a language model. Raises AdaptError for a folder that is not there."""
    source = str(bundled(spec)) if spec in BUNDLED else spec.removeprefix("hf:")
    if not spec.startswith("hf:") and not Path(source).is_dir():
        raise AdaptError(f"the language model {spec!r} is not an existing folder; give a folder, hf:NAME or mini-lm")
    return source
