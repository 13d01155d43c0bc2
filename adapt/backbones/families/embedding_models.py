"""The family of native vision-language models that serve as dual encoders, or as backbones of images alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone

_OF_MINI_VLM = "what is it?"  # a question that the bundled model knows


class EmbeddingModels(Family):
    name = "embedding_models"
    forms: ClassVar = {
        "embed:BACKBONE": "a native vision-language model as a CLIP, e.g. embed:mini-vlm, embed:hf:Qwen/Qwen2-VL-2B",
        "last:BACKBONE": "its decoder's last state, for methods that read images alone, e.g. last:mini-vlm",
        "heads:BACKBONE": "its attention heads' vectors, for methods such as savs and hec, e.g. heads:mini-vlm",
    }

    def claims(self, spec: str) -> bool:
        read, _, whole = spec.partition(":")
        return f"{read}:BACKBONE" in self.forms and bool(whole) and ("&" not in whole or Path(whole).is_dir())

    def reads_texts_of(self, spec: str) -> bool:
        return spec.startswith("embed:")

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.embedding import QUESTION, EmbeddingVLM
        from adapt.backbones.load import of_one_model
        from adapt.backbones.native import NativeVLM

        read, _, whole = spec.partition(":")
        native = of_one_model(whole, device)
        if not isinstance(native, NativeVLM):
            raise AdaptError(
                f"{native.describe()} is a {native.kind}; expected a native vision-language model after {read}:"
            )
        if read != "embed":
            from adapt.backbones.native_eyes import NativeEyes

            return NativeEyes(native, "heads" if read == "heads" else "last", name=spec)
        return EmbeddingVLM(native, _OF_MINI_VLM if native.name == "mini-vlm" else QUESTION, name=spec)
