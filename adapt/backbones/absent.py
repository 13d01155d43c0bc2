"""Backbones with some transformer blocks cut out, which only serve methods that bypass these blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError


class Absent(nn.Module):
    """A placeholder for a removed transformer block, which raises AdaptError if a forward pass reaches the block."""

    precision: Tensor

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("precision", torch.empty(0, dtype=dtype), persistent=False)  # follows `.to(dtype)`

    def get_weight_dtype(self) -> torch.dtype:
        """Return the dtype of the model's weights; open_clip calls this method on the first block of a tower."""
        return self.precision.dtype

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        raise AdaptError(
            f"the block {self.name} was removed from this compact backbone, which only works with the adapter that it "
            "was exported with: load the full backbone for other uses"
        )


def block_paths(backbone: Backbone, names: Collection[str]) -> dict[str, str]:
    """Return a dict from each block name in `names`, such as vision.3, to the block's module path in the model."""
    paths = {id(module): path for path, module in backbone.model.named_modules()}
    return {
        f"{tower.name}.{i}": paths[id(block.module)]
        for tower in backbone.towers.values()
        for i, block in enumerate(tower.blocks)
        if f"{tower.name}.{i}" in names
    }


def cut_out(backbone: Backbone, names: Collection[str]) -> None:
    """Replace the blocks in `names`, such as vision.3, by `Absent` placeholders, which removes the blocks' weights."""
    for name, path in block_paths(backbone, names).items():
        tower, _, index = name.partition(".")
        absent, blocks = Absent(name, backbone.dtype), list(backbone.towers[tower].blocks)
        backbone.model.set_submodule(path, absent)
        blocks[int(index)] = replace(blocks[int(index)], module=absent)
        backbone.towers[tower] = replace(backbone.towers[tower], blocks=tuple(blocks))
