"""Projector: a linear map or small MLP from patch features to visual tokens of the language model.

Papers: Merullo et al., Linearly Mapping from Image to Text Space, ICLR 2023 (LiMBeR); Liu et al., Improved Baselines
with Visual Instruction Tuning, CVPR 2024 (LLaVA-1.5).
Reference: LLaVA as implemented in transformers (`LlavaMultiModalProjector`), whose parameter names are used here.
Deviations:
* The language model stays frozen; LLaVA also trains it in its second stage (see `compose` and `lora` for that).
* LiMBeR's map of CLIP is a convolution over the grid of patches; here each patch is a token.
* Of a native vision-language model, the linear maps of its own connector are learned anew, in the connector's own form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.native import NativeVLM
from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.edits import Edit, Replace, Tokens
from adapt.errors import AdaptError
from adapt.methods.base import Context, Method, MethodConfig, Step
from adapt.methods.base.traits import Imported, ReadsPublished


class ProjectorConfig(MethodConfig):
    kind: Literal["linear", "mlp"] = "mlp"
    """One linear map (LiMBeR), or two with a GELU between them (LLaVA-1.5); native models keep their own form."""


class Projector(Method[Step], ReadsPublished):
    """A linear layer or an MLP (`kind`) that maps each image patch to a visual token `(d,)` of a language model.

    On a native vision-language model, new linear maps `BLOCK.NAME` replace those of the model's connector.
    """

    name = "projector"
    title = "Projector (LiMBeR, ICLR 2023; LLaVA-1.5, CVPR 2024)"
    serves = ("vision LLM", "native VLM")
    Config = ProjectorConfig
    _native = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({"connector" if self._native else "decoder"})

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return projector tensors and settings from a transformers LLaVA checkpoint or LLaVA's `mm_projector.bin`."""
        own = {key.rpartition("projector.")[2]: value for key, value in state.items() if "projector." in key}
        renamed = {key.replace("0.", "linear_1.").replace("2.", "linear_2."): value for key, value in own.items()}
        tensors = own if "linear_1.weight" in own else renamed
        if "linear_1.weight" not in tensors:
            return {f"linear_1.{key}": tensors[key] for key in ("weight", "bias")}, {"kind": "linear"}
        return {f"linear_{i}.{part}": tensors[f"linear_{i}.{part}"] for i in (1, 2) for part in ("weight", "bias")}, {}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        if isinstance(backbone, NativeVLM):
            self._renew(backbone)
            return
        assert isinstance(backbone, VisionLLM)
        _, width = backbone.patch_shape()
        target = backbone.tower("decoder").width
        self.linear_1 = nn.Linear(width, target)
        self.linear_2 = nn.Linear(target, target) if self.config.kind == "mlp" else None
        self.act = nn.GELU()
        self.to(backbone.device)

    def _renew(self, backbone: NativeVLM) -> None:
        """Draw new linear maps in place of those of the backbone's connector."""
        if self.config.kind != "mlp":
            raise AdaptError(
                f"projector: kind is {self.config.kind}, but {backbone.describe()} keeps its connector's form: leave "
                "kind out"
            )
        self._native = True
        for index, block in enumerate(backbone.tower("connector").blocks):
            maps = {
                name: _Map(each.shape[1], each.shape[0], each.bias is not None)
                for name, each in block.projections.items()
            }
            self.add_module(str(index), nn.ModuleDict(maps))
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        if self._native:
            renewed = [(index, self.get_submodule(str(index))) for index in range(len(tower.blocks))]
            return [Replace(index, name, linear) for index, maps in renewed for name, linear in maps.named_children()]
        features = context.tokens("vision").to(self.linear_1.weight.dtype)
        tokens = self.linear_1(features)
        if self.linear_2 is not None:
            tokens = self.linear_2(self.act(tokens))
        return [Tokens(tokens[:, None])]


class _Map(nn.Linear):
    """A linear map in fp32 for inputs of any precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
