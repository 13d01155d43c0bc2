"""CLIP-SVD: only the singular values of the linear maps inside the blocks of both towers are trained.

Paper: Koleilat et al., Singular Value Few-shot Adaptation of Vision-Language Models, 2025 (CLIP-SVD).
Reference: CLIP-SVD `022b1ed`, `svf_utils/svf_torch.py`, `main.py`.
Deviations:
* `rank` below 1 cuts the adapted projections alone; the reference cuts all six maps of a block, whichever it trains.
* At `rank` 1 all singular values are trained; the reference rounds their number down to a multiple of 4 there too.
* Weights are decomposed in fp64; the reference decomposes in fp32, where nearly equal singular values leave their
  vectors open.
* The weight is composed once per call; the reference multiplies every token by one factor after the other.
* The adapter holds only singular values, as `(r,)`, trained and at the start; loading decomposes the backbone again.
  The reference saves the decomposed model, with singular values as `(1, r)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Projection, Tower
from adapt.common.devices import doubled
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Replace
from adapt.methods.base import Context, Method, Step
from adapt.methods.base.places import Place, Projections, check_mergeable, owner_of, places
from adapt.methods.base.traits import ChecksAdapter, InsideBlocks, Merges
from adapt.methods.zero_shot import TemplateConfig

MODULES = {  # the reference's names, as far as it has such projections
    "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "out": "attn.proj", "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj", "gate": "mlp.gate", "up": "mlp.up", "down": "mlp.down",
}  # fmt: skip
PREFIXES = {"text": "transformer.resblocks", "vision": "visual.transformer.resblocks"}
TOLERANCE = 1e-4  # of the largest singular value, within which two decompositions are of the same weight


class CLIPSVDConfig(TemplateConfig):
    projections: Projections = "all"
    """The adapted projections: names, or all that each tower has, which are q, k, v, out, fc1 and fc2 in CLIP."""
    towers: tuple[Literal["text", "vision"], ...] = ("text", "vision")
    """The adapted towers."""
    blocks: tuple[int, int] | None = None
    """The first block and the one after the last; by default all blocks."""
    rank: float = Field(default=1.0, gt=0, le=1)
    """The share of the singular values that each weight keeps, the largest ones, rounded down to a multiple of 4; below
    1 the rest of the weight is lost, so that training does not start from the backbone."""
    logit_scale: float | None = Field(default=100.0, gt=0)
    """A constant scale of the logits, as published; null means the backbone's own."""


class CLIPSVD(Method[Step], ChecksAdapter, InsideBlocks, Merges):
    """Tuning of singular values. `CLIPSVD()` trains `[visual.]transformer.resblocks.I.MODULE.vector_S`.

    Each vector `(min(out, in),)` stands beside `start`, its frozen values at the start, by which loading recognises the
    weights. The factors U and V are larger than the weights, and are not saved: building, saving and loading decompose
    the weights, which takes a minute and a half on one core for a CLIP ViT-B/16. Every training step composes the
    weights, which takes as long as a few images; answers reuse them, in the memory of a second set of weights.
    """

    name = "clip_svd"
    title = "CLIP-SVD (Koleilat et al., 2025)"
    tasks = frozenset({"classes", "pairs", "records"})
    serves = ("dual encoder", "vision encoder")
    Config = CLIPSVDConfig
    _projections: dict[Place, Projection]

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        self._modules.clear()  # an earlier build may have tensors for blocks that are absent now
        self._projections = dict(places(self, backbone))
        for place, projection in self._projections.items():
            *path, leaf = _path(place).split(".")
            owner_of(self, path).add_module(leaf, _Factors(projection.weight, self.config.rank))

    def _factors(self, place: Place) -> Any:
        return self.get_submodule(_path(place))

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return [
            Replace(block, letter, Composed(self._factors((name, block, letter)).weight(), projection.bias))
            for (name, block, letter), projection in self._projections.items()
            if name == tower.name
        ]

    def merged(self) -> dict[Place, Tensor]:
        for projection in self._projections.values():
            check_mergeable(projection, self.name)
        return {place: self._factors(place).weight().detach() for place in self._projections}

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        for place in self._projections:
            own, stored = self._factors(place).start, tensors[f"{_path(place)}.start"]
            apart = float((stored.to(own) - own).abs().max() / own.max())
            if apart > TOLERANCE:
                tower, block, letter = place
                raise AdaptError(
                    f"{source} was trained on other weights: the singular values of {letter} in block {block} of the "
                    f"{tower} tower differ by {apart:.1e} of the largest; expected at most {TOLERANCE:.0e}. Load the "
                    "backbone with the weights and in the precision that the adapter was trained on"
                )


def _path(place: Place) -> str:
    """Return the name of the module that holds the singular values of a projection."""
    tower, block, letter = place
    return f"{PREFIXES[tower]}.{block}.{MODULES[letter]}"


class _Factors(nn.Module):
    """A frozen weight `(out, in)` as `U diag(S) V`, of which a share `rank` of the singular values S is trained."""

    start: Tensor
    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, rank: float) -> None:
        super().__init__()
        u, start, v = torch.linalg.svd(doubled(weight), full_matrices=False)
        kept = len(start) if rank == 1 else max(4, int(rank * len(start)) // 4 * 4)
        u, start, v = (factor.to(weight.device, torch.float) for factor in (u[:, :kept], start[:kept], v[:kept]))
        self.vector_S = nn.Parameter(start.clone())
        self.register_buffer("start", start)
        self.register_buffer("_u", u, persistent=False)
        self.register_buffer("_v", v, persistent=False)

        self._kept: tuple[object, Tensor] | None = None  # the last weight without a gradient, and of which values

    def weight(self) -> Tensor:
        """Return the weight `(out, in)`, composed anew only if the singular values have changed or get a gradient."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.vector_S.requires_grad):
            return self._composed()
        kept = self._kept  # read once, for other threads
        now = id(self.vector_S), self.vector_S._version, self._u.device
        if kept is None or kept[0] != now:
            kept = self._kept = now, self._composed().detach()
        return kept[1]

    def _composed(self) -> Tensor:
        device = "cpu" if self._u.is_meta else self._u.device.type  # torch has no autocast for the meta device
        with torch.autocast(device, enabled=False):  # small changes of S would be rounded away
            return self._u * self.vector_S @ self._v


class Composed(nn.Module):
    """A linear layer with the weight `(out, in)` of the current call and a frozen bias, or none."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)
