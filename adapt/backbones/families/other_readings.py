"""The family of models that are read otherwise, as the image half of a CLIP or the last states of a native model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone

_OF_MINI_VLM = "what is it?"  # a question that the bundled model knows


class OtherReadings(Family):
    name = "other_readings"
    forms: ClassVar = {
        "vision:BACKBONE": "the image half of a CLIP or SigLIP from above, without texts, e.g. vision:mini-clip",
        "offset:BACKBONE": "DINOv2 with positions resized as in its own code, e.g. offset:hf:facebook/dinov2-small",
        "embed:BACKBONE": "a native vision-language model as a CLIP, e.g. embed:mini-vlm, embed:hf:Qwen/Qwen2-VL-2B",
        "last:BACKBONE": "its decoder's last state, for methods that read images alone, e.g. last:mini-vlm",
        "heads:BACKBONE": "its attention heads' vectors, for methods such as savs and hec, e.g. heads:mini-vlm",
    }

    def claims(self, spec: str) -> bool:
        reading, _, whole = spec.partition(":")
        of_two = {"&", "+"} if reading in ("vision", "offset") else {"&"}  # they may stand before a language model
        return f"{reading}:BACKBONE" in self.forms and bool(whole) and (not of_two & {*whole} or Path(whole).is_dir())

    def reads_texts_of(self, spec: str) -> bool:
        return spec.startswith("embed:")

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.load import of_one_model

        reading, _, name = spec.partition(":")
        whole = of_one_model(name, device)
        if reading == "vision":
            from adapt.backbones.base import DualEncoder
            from adapt.backbones.vision_encoder import VisionEncoder

            if isinstance(whole, DualEncoder):
                return VisionEncoder.of(whole, spec)
            raise AdaptError(f"{whole.describe()} is a {whole.kind}; expected a CLIP or SigLIP after vision:")
        if reading == "offset":
            from adapt.backbones.hf import with_offset

            return with_offset(whole, spec)
        from adapt.backbones.native import NativeVLM

        if not isinstance(whole, NativeVLM):
            raise AdaptError(
                f"{whole.describe()} is a {whole.kind}; expected a native vision-language model after {reading}:"
            )
        if reading == "embed":
            from adapt.backbones.embedding import QUESTION, EmbeddingVLM

            return EmbeddingVLM(whole, _OF_MINI_VLM if whole.name == "mini-vlm" else QUESTION, name=spec)
        from adapt.backbones.native_eyes import NativeEyes

        return NativeEyes(whole, "heads" if reading == "heads" else "last", name=spec)
