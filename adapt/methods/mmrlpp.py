"""MMRL++: MMRL with one map a tower and low-rank parts for its blocks, blended tokens, and a low-rank projection.

Paper: Guo and Gu, MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning for Vision-Language Models,
IJCV 2026.
Reference: MMRL `27d8821`, `trainers/mmrlpp.py`, `clip/model_mmrlpp.py`.
Deviations:
* All deviations of MMRL.
* `pull` and `share` have one default each; the reference tunes both for each data set, and `share` also for each data
  set that a trained model is tested on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower
from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep
from adapt.methods.mmrl import MMRL, MMRLConfig

_TOWERS = {"text": "srra_r2tproj", "vision": "srra_r2vproj"}  # names in the reference


class MMRLPPConfig(MMRLConfig):
    rank: int = Field(default=4, ge=1)
    """The rank of each block's own part of the map."""
    projection_rank: int = Field(default=64, ge=1)
    """The rank of the change to the frozen projection, for the tokens' outputs."""
    share: float = Field(default=0.5, ge=0, le=1)
    """The share of a block's own tokens at its input; the rest is what the tokens became in the block before."""


class MMRLPP(MMRL):
    """MMRL with fewer parameters: `MMRLPP()` trains `compound_rep_tokens`, `srra_r2{t,v}proj.*`, `A` and `B`.

    The tokens' outputs are projected by the frozen projection plus `A @ B`.
    """

    name = "mmrlpp"
    title = "MMRL++ (Guo and Gu, IJCV 2026)"
    Config = MMRLPPConfig
    example = {"tokens": 3, "width": 16, "projection_rank": 4}

    def _build_maps(self, tower: Tower) -> None:
        maps = _SharedMap(self.config.width, tower.width, self.config.rank, len(self._upper(tower)))
        setattr(self, _TOWERS[tower.name], maps)

    def _build_projection(self, backbone: Backbone) -> None:
        tower = backbone.tower("vision")
        if tower.projection is None:
            raise AdaptError(
                f"{self.name} changes the vision tower's projection, and {backbone.describe()} has none: use another "
                "method, such as mmrl"
            )
        size, rank = backbone.embed_dim, self.config.projection_rank  # type: ignore[attr-defined]
        self.A, self.B = _factors(tower.width, size, rank)

    def _values(self, tower: str) -> Iterable[Tensor]:
        values: Iterable[Tensor] = getattr(self, _TOWERS[tower])(self.compound_rep_tokens)
        return values

    def _projection(self, step: ImageStep) -> Tensor:
        frozen = step.model.backbone.tower("vision").projection
        assert frozen is not None  # checked when the method was built
        return frozen.weight.T + self.A @ self.B


class _SharedMap(nn.Module):
    """A linear map that the blocks of a tower share, to which each block adds a part of its own."""

    def __init__(self, size: int, out: int, rank: int, blocks: int) -> None:
        super().__init__()
        self.weight = nn.Linear(size, out).weight
        self.srra = nn.ModuleList(_OwnPart(size, out, rank) for _ in range(blocks))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens `(k, out)` of each block for shared tokens `(k, size)`."""
        return [own(tokens, self.weight) for own in self.srra]


class _OwnPart(nn.Module):
    """The part of one block in a shared linear map: a low-rank change of the weight, and a bias."""

    def __init__(self, size: int, out: int, rank: int) -> None:
        super().__init__()
        self.A, self.B = _factors(out, size, rank)
        self.bias = nn.Linear(size, out).bias

    def forward(self, tokens: Tensor, shared: Tensor) -> Tensor:
        """Return the tokens `(k, out)` of the block for shared tokens `(k, size)` and the shared weight."""
        return F.linear(tokens, shared + self.A @ self.B, self.bias)


def _factors(rows: int, columns: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return factors `(rows, rank)` and `(rank, columns)`, whose product is zero at the start."""
    first = nn.init.kaiming_uniform_(torch.empty(rows, rank), a=math.sqrt(5))
    return nn.Parameter(first), nn.Parameter(torch.zeros(rank, columns))
