"""The family of native vision-language models that serve as dual encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone

_OF_MINI_VLM = "what is it?"  # a question that the bundled model knows


class EmbeddingModels(Family):
    name = "embedding_models"
    prefix = "embed:"
    forms: ClassVar = {
        "embed:BACKBONE": "a native vision-language model as a CLIP, e.g. embed:mini-vlm, embed:hf:Qwen/Qwen2-VL-2B",
    }

    def claims(self, spec: str) -> bool:
        return spec.startswith(self.prefix) and spec != self.prefix

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.embedding import QUESTION, EmbeddingVLM
        from adapt.backbones.load import of_one_model
        from adapt.backbones.native import NativeVLM

        native = of_one_model(spec.removeprefix(self.prefix), device)
        if not isinstance(native, NativeVLM):
            raise AdaptError(
                f"{native.describe()} is a {native.kind}; expected a native vision-language model after {self.prefix}"
            )
        return EmbeddingVLM(native, _OF_MINI_VLM if native.name == "mini-vlm" else QUESTION, name=spec)
