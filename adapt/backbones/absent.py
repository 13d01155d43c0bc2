"""Blocks that were cut out of a backbone: nothing of them is left, and only an edit can take their place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.errors import AdaptError


class Absent(nn.Module):
    """A stand-in for the block `name`, which was cut out. Raises AdaptError if it is called and no edit bypasses it."""

    precision: Tensor

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("precision", torch.empty(0, dtype=dtype), persistent=False)  # follows `.to(dtype)`

    def get_weight_dtype(self) -> torch.dtype:
        """Return the model's precision, which open_clip reads off the first block of a tower."""
        return self.precision.dtype

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        raise AdaptError(
            f"the block {self.name} was cut out of this compact model, which serves its own adapter only: "
            "load the full backbone for anything else"
        )


def block_paths(backbone: Backbone, names: Collection[str]) -> dict[str, str]:
    """Return the paths in the backbone's model of the blocks of these names, such as vision.3."""
    paths = {id(module): path for path, module in backbone.model.named_modules()}
    return {
        f"{tower.name}.{i}": paths[id(block.module)]
        for tower in backbone.towers.values()
        for i, block in enumerate(tower.blocks)
        if f"{tower.name}.{i}" in names
    }


def cut_out(backbone: Backbone, names: Collection[str]) -> None:
    """Put an `Absent` in the place of these blocks; their modules are no longer part of the model."""
    for name, path in block_paths(backbone, names).items():
        tower, _, index = name.partition(".")
        absent, blocks = Absent(name, backbone.dtype), list(backbone.towers[tower].blocks)
        backbone.model.set_submodule(path, absent)
        blocks[int(index)] = replace(blocks[int(index)], module=absent)
        backbone.towers[tower] = replace(backbone.towers[tower], blocks=tuple(blocks))
