"""The parts of a frozen model that edits address: towers, blocks and projections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

Pooling = Literal["end", "last", "class", "mean", "map", "none"]


@dataclass(frozen=True)
class Projection:
    """One linear map of a block, as some output rows of a module's weight.

    A fused query-key-value weight is three projections over one module, addressed without being taken apart.
    """

    module: nn.Module
    rows: slice | None = None
    weight_name: str = "weight"
    bias_name: str = "bias"

    @property
    def weight(self) -> Tensor:
        """The frozen weight `(out, in)`: a detached view, so no gradient ever reaches the backbone."""
        return self._rows_of(getattr(self.module, self.weight_name))

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias `(out,)`, or None."""
        bias = getattr(self.module, self.bias_name)
        return None if bias is None else self._rows_of(bias)

    def _rows_of(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.rows is None else tensor.detach()[self.rows]


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer layer: `x + scale1(attn(norm1(x)))`, then `x + scale2(fc2(act(fc1(norm2(x)))))`."""

    module: nn.Module
    attn: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    act: nn.Module
    projections: dict[str, Projection]
    scale1: nn.Module = field(default_factory=nn.Identity)
    scale2: nn.Module = field(default_factory=nn.Identity)
    added: dict[str, nn.Module] = field(default_factory=dict)  # attn, mlp: whose output joins the residual stream
    batch_first: bool = True  # whether the library hands it (b, l, d), not (l, b, d)
    attn_returns_weights: bool = True  # (output, weights or None), not the output alone
    plain_attention: bool = True  # nothing but softmax(q k / sqrt(d)) v between the projections: no norms, no gates


@dataclass(frozen=True)
class Form:
    """What kind of transformer a tower is: decides which edits and which fast paths it can carry."""

    causal: bool
    pooling: Pooling
    plain_mask: bool = True  # causal or none; no padding and no appended token masked besides


@dataclass(frozen=True)
class TextParts:
    """What surrounds the blocks of a text tower."""

    embedding: nn.Embedding
    positions: Callable[[], Tensor]  # () -> (context length, d)
    final_norm: nn.Module
    project: Callable[[Tensor], Tensor]  # pooled (n, d) -> features (n, e)


@dataclass(frozen=True)
class Tower:
    """One transformer stack of a backbone. Sizes are read from the model."""

    name: str
    width: int
    heads: int
    form: Form
    blocks: tuple[Block, ...]
    text: TextParts | None = None
    pre_norm: nn.Module | None = None  # where all tokens enter; without one, at the first block

    @property
    def projections(self) -> tuple[str, ...]:
        """The letters that every block of this tower has."""
        return tuple(self.blocks[0].projections)


def fused_qkv(
    module: nn.Module, width: int, weight_name: str = "weight", bias_name: str = "bias"
) -> dict[str, Projection]:
    """q, k and v as the three thirds of one weight `(3 * width, in)`."""
    return {
        letter: Projection(module, slice(i * width, (i + 1) * width), weight_name, bias_name)
        for i, letter in enumerate("qkv")
    }
