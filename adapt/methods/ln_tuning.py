"""LayerNorm tuning: trains the layer norms inside the blocks of both towers, or of one.

Paper: Farina et al., Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, CVPR 2025; its
first stage alone.
Reference: rethinking_fewshot_vlms `64ac143`, `fs/ln_only.py`, `fs/utils/model_utils.py`.
Deviations: norms are fp32 whatever the backbone's precision. As in the reference, norms outside the blocks stay
frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Block, Tower
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Replace
from adapt.methods.base import Context, Method, Step
from adapt.methods.base.traits import InsideBlocks
from adapt.methods.zero_shot import TemplatesConfig

NORMS = {"norm1": "ln_1", "norm2": "ln_2"}  # the names in CLIP's own state


class LNTuningConfig(TemplatesConfig):
    towers: tuple[Literal["text", "vision"], ...] = Field(default=("text", "vision"), min_length=1)
    """The tuned towers."""
    text_start: int = Field(default=0, ge=0)
    """The first tuned block of the text tower, counted from 0."""
    vision_start: int = Field(default=0, ge=0)
    """The same of the vision tower."""


class LNTuning(Method[Step], InsideBlocks):
    """Layer norm tuning in both towers. `LNTuning()` trains `[visual.]transformer.resblocks.I.ln_1` and `ln_2`."""

    name = "ln_tuning"
    title = "LayerNorm tuning (the first stage of Farina et al., CVPR 2025)"
    tasks = frozenset({"classes", "pairs", "records"})
    serves = ("dual encoder", "vision encoder")
    Config = LNTuningConfig

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        for name in self.config.towers:
            norms: dict[int, dict[str, nn.Module]] = {
                index: {called: TunedNorm(layer_norm(getattr(block, part), self)) for part, called in NORMS.items()}
                for index, block in self.tuned_blocks(backbone.tower(name))
            }
            hold(self, name, norms)
        self.to(backbone.device)

    def tuned_blocks(self, tower: Tower) -> list[tuple[int, Block]]:
        """Return the blocks of `tower` from the first tuned one on, each with its index."""
        first, blocks = getattr(self.config, f"{tower.name}_start"), len(tower.blocks)
        if first >= blocks:
            raise AdaptError(
                f"{self.name}: {tower.name}_start is {first}, but the {tower.name} tower has {blocks} blocks: give 0 "
                f"to {blocks - 1}"
            )
        return [(index, block) for index, block in self.present(tower) if index >= first]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return [
            Replace(int(index), part, own[called])
            for index, own in held(self, tower.name)
            for part, called in NORMS.items()
        ]


def hold(method: Method, tower: str, blocks: dict[int, dict[str, nn.Module]]) -> None:
    """Register the modules `blocks` for a tower's blocks as submodules of `method`, under CLIP's module names."""
    modules = {str(index): nn.ModuleDict(own) for index, own in blocks.items()}
    transformer = nn.ModuleDict({"resblocks": nn.ModuleDict(modules)})
    if tower == "text":
        method.transformer = transformer
    else:
        method.visual = nn.ModuleDict({"transformer": transformer})


def held(method: Method, tower: str) -> Iterator[tuple[str, nn.ModuleDict]]:
    """Return an iterator over pairs of block number and modules, which `hold` registered for a tower."""
    blocks: Any = method.get_submodule("transformer.resblocks" if tower == "text" else "visual.transformer.resblocks")
    return iter(blocks.items())


def layer_norm(module: object, method: Method) -> nn.LayerNorm:
    """Return `module` unchanged. Raises AdaptError, naming the method, if it is not a `LayerNorm`."""
    if not isinstance(module, nn.LayerNorm):
        raise AdaptError(
            f"{method.name} tunes layer norms, but this backbone has {type(module).__name__} instead: use another "
            "method, such as lora"
        )
    return module


class TunedNorm(nn.Module):
    """A layer norm with trained weight and bias, which are initialised from a frozen layer norm."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        shape = norm.normalized_shape
        self.weight = nn.Parameter(torch.ones(shape) if norm.weight is None else norm.weight.detach().float().clone())
        self.bias = nn.Parameter(torch.zeros(shape) if norm.bias is None else norm.bias.detach().float().clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)
