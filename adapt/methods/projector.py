"""Projector: a linear map or small MLP from patch features to visual tokens of the language model.

Papers: Merullo et al., Linearly Mapping from Image to Text Space, ICLR 2023 (LiMBeR); Liu et al., Improved Baselines
with Visual Instruction Tuning, CVPR 2024 (LLaVA-1.5).
Reference: LLaVA as implemented in transformers (`LlavaMultiModalProjector`), whose parameter names are used here.
Deviations:
* The language model stays frozen; LLaVA also trains it in its second stage (see `compose` and `lora` for that).
* LiMBeR's map of CLIP is a convolution over the grid of patches; here each patch is a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, Method, MethodConfig, Step
from adapt.methods.base.traits import Imported, ReadsPublished


class ProjectorConfig(MethodConfig):
    kind: Literal["linear", "mlp"] = "mlp"
    """One linear map (LiMBeR), or two with a GELU between them (LLaVA-1.5)."""


class Projector(Method[Step], ReadsPublished):
    """A linear layer or an MLP (`kind`) that maps each image patch to a visual token `(d,)` of a language model."""

    name = "projector"
    title = "Projector (LiMBeR, ICLR 2023; LLaVA-1.5, CVPR 2024)"
    serves = ("vision LLM",)
    Config = ProjectorConfig
    touches = frozenset({"decoder"})

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return projector tensors and settings from a transformers LLaVA checkpoint or LLaVA's `mm_projector.bin`."""
        own = {key.rpartition("projector.")[2]: value for key, value in state.items() if "projector." in key}
        renamed = {key.replace("0.", "linear_1.").replace("2.", "linear_2."): value for key, value in own.items()}
        tensors = own if "linear_1.weight" in own else renamed
        if "linear_1.weight" not in tensors:
            return {f"linear_1.{key}": tensors[key] for key in ("weight", "bias")}, {"kind": "linear"}
        return {f"linear_{i}.{part}": tensors[f"linear_{i}.{part}"] for i in (1, 2) for part in ("weight", "bias")}, {}

    def build(self, backbone: VisionLLM, class_names: Sequence[str]) -> None:  # type: ignore[override]
        _, width = backbone.patch_shape()
        target = backbone.tower("decoder").width
        self.linear_1 = nn.Linear(width, target)
        self.linear_2 = nn.Linear(target, target) if self.config.kind == "mlp" else None
        self.act = nn.GELU()
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        features = context.tokens("vision").to(self.linear_1.weight.dtype)
        tokens = self.linear_1(features)
        if self.linear_2 is not None:
            tokens = self.linear_2(self.act(tokens))
        return [Tokens(tokens[:, None])]
