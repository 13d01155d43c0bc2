"""MMA: multi-modal adapters beside the upper blocks of both towers, with a layer that the towers share.

Paper: Yang et al., MMA: Multi-Modal Adapter for Vision-Language Models, CVPR 2024.
Reference: VLM-MultiModalAdapter `c3d0bc2`, `trainers/mmadapter.py`, `clip/model.py`, `clip/gsl.py`.
Deviations: adapters are fp32 whatever the backbone's precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Parallel
from adapt.methods.base import Context, ImageStep, Method
from adapt.methods.base.method import gradient_times
from adapt.methods.zero_shot import TemplateConfig

_TOWERS = {"text": "text_adapter", "vision": "visual_adapter"}  # the names in the reference


class MMAConfig(TemplateConfig):
    blocks: tuple[int, int] | None = None
    """The first and the last block with an adapter, counted from 1; by default the last two thirds."""
    dim: int = Field(default=32, ge=1)
    """The width of the adapters and of the shared layer."""
    scale: float = Field(default=0.001, gt=0)
    """The scale of an adapter's output. The adapter's own tensors, and only they, learn as if it were 1."""


class MMA(Method[ImageStep]):
    """Adapters with a layer that both towers share. `MMA()` trains `{text,visual,shared}_adapter.I` for block I."""

    name = "mma"
    title = "MMA (Yang et al., CVPR 2024)"
    Config = MMAConfig
    example = {"blocks": (1, 2), "scale": 0.5}
    touches = frozenset({"text", "vision"})

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        depth = min(len(backbone.tower(name).blocks) for name in _TOWERS)
        first, last = self.config.blocks or (depth - 2 * depth // 3 + 1, depth)
        if not 1 <= first <= last <= depth:
            raise AdaptError(
                f"mma: blocks are {first} to {last}; expected a range within 1 to {depth}, the blocks in both towers"
            )
        numbers, dim = [str(number) for number in range(first, last + 1)], self.config.dim
        for name, called in _TOWERS.items():
            width = backbone.tower(name).width
            ends = {number: {"down": _layer(width, dim), "up": nn.Linear(dim, width)} for number in numbers}
            setattr(self, called, nn.ModuleDict({number: nn.ModuleDict(own) for number, own in ends.items()}))
        self.shared_adapter = nn.ModuleDict({number: _layer(dim, dim) for number in numbers})
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.kaiming_normal_(linear.weight, a=0, mode="fan_out")
            nn.init.zeros_(linear.bias)
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        ends: nn.ModuleDict = getattr(self, _TOWERS[tower.name])
        return [
            Parallel(
                int(number) - 1,
                "block",
                _Adapter(own["down"], self.shared_adapter[number], own["up"], self.config.scale),  # type: ignore[index]
                normed=True,
            )
            for number, own in ends.items()
        ]


def _layer(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, out), nn.ReLU())


class _Adapter(nn.Module):
    """An adapter `scale * up(shared(down(x)))`, whose own tensors get gradients as if `scale` were 1."""

    def __init__(self, down: nn.Module, shared: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.down, self.shared, self.up, self.scale = down, shared, up, scale

    def forward(self, x: Tensor) -> Tensor:
        scaled = gradient_times(x.to(next(self.parameters()).dtype), self.scale)
        change = self.up(self.shared(self.down(scaled)))
        return (self.scale * gradient_times(change, 1 / self.scale)).to(x.dtype)
