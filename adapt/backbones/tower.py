"""The parts of a frozen model that edits act on: towers, blocks and projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.errors import AdaptError

TowerName = Literal["text", "vision", "fusion", "text_fusion", "vision_fusion", "decoder"]
Norm = Callable[[Tensor], Tensor]
BlockOutput = Tensor | tuple[Tensor, *tuple[object, ...]]  # of a block's module: its tokens first
Pooling = Literal["end", "last", "class", "mean", "map", "none"]


@dataclass(frozen=True)
class Projection:
    """One linear map of a block, as some output rows of a module's weight.

    A fused query-key-value weight is three projections over one module, addressed without being taken apart. Rows that
    are interleaved by heads are an index `(out,)`.
    """

    module: nn.Module
    rows: slice | Tensor | None = None
    weight_name: str = "weight"
    bias_name: str = "bias"

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)` by the frozen weight, whatever replaces the module during a call."""
        if not self.quantized:
            return F.linear(x, self.weight, self.bias)
        output: Tensor = type(self.module).forward(self.module, x)
        return output if self.rows is None else output[..., self.rows]

    @property
    def weight(self) -> Tensor:
        """The frozen weight `(out, in)`, detached, so that no gradient ever reaches the backbone.

        It is a view, but a copy if rows are interleaved or the weight is quantised, then in full precision.
        """
        return self._rows_of(full_weight(self.module) if self.quantized else getattr(self.module, self.weight_name))

    @property
    def is_view(self) -> bool:
        """Whether `weight` shares memory with the module's."""
        return not self.quantized and not isinstance(self.rows, Tensor)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its computation, also if the weight is quantised."""
        stored: torch.dtype = getattr(self.module, self.weight_name).dtype
        return getattr(self.module, "int8_original_dtype", stored)

    @property
    def quantized(self) -> bool:
        return hasattr(self.module, "int8_original_dtype")

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias `(out,)`, or None."""
        bias = getattr(self.module, self.bias_name)
        return None if bias is None else self._rows_of(bias)

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, also if the weight is quantised and packed."""
        module = self.module
        rows, columns = (
            (module.out_features, module.in_features)
            if isinstance(module, nn.Linear)
            else getattr(module, self.weight_name).shape
        )
        return len(torch.arange(rows)[slice(None) if self.rows is None else self.rows]), columns

    def _rows_of(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.rows is None else tensor.detach()[self.rows]


@dataclass(frozen=True)
class Site:
    """A part of a block that adds to the residual stream."""

    read: nn.Module  # its first input is the residual stream `(b, l, d)`
    added: nn.Module  # its output, or the first of them, joins the stream


@dataclass(frozen=True)
class Block:
    """One transformer layer.

    In CLIP and SigLIP it is pre-norm: `x + scale1(attn(norm1(x)))`, then `x + scale2(fc2(act(fc1(norm2(x)))))`.
    Elsewhere only `sites` say how its parts are joined.
    """

    module: nn.Module
    attn: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    act: nn.Module
    projections: dict[str, Projection]
    scale1: nn.Module = field(default_factory=nn.Identity)
    scale2: nn.Module = field(default_factory=nn.Identity)
    sites: dict[str, Site] = field(default_factory=dict)  # attn, cross, mlp, in order of computation
    mlp: nn.Module | None = None
    batch_first: bool = True  # whether the library hands it (b, l, d), not (l, b, d)
    attn_returns_weights: bool = True  # (output, weights or None), not just the output
    returns: int = 0  # how many values the module returns in a tuple; 0 where it returns `(b, l, d)` itself
    plain_attention: bool = True  # nothing but softmax(q k / sqrt(d)) v between the projections: no norms, no gates
    quick_gelu: bool = False  # act is x * sigmoid(1.702 x)

    def norm_of(self, site: str) -> nn.Module | None:
        """Return the norm through which a site, or the block, reads the residual stream; None in a post-norm block."""
        read = next(iter(self.sites.values())).read if site == "block" else self.sites[site].read
        return read if read is self.norm1 or read is self.norm2 else None


def tokens_of(output: BlockOutput) -> Tensor:
    """Return the tokens in what a block's module returns, whether or not there is more."""
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Form:
    """The kind of transformer that a tower is, which decides which edits and fast paths it supports."""

    causal: bool
    pooling: Pooling
    plain_mask: bool = True  # causal or none, with no padding or appended token masked
    kinds: tuple[str, ...] = ()  # each decoder block's kind of attention, if they differ


@dataclass(frozen=True)
class TextParts:
    """The parts around the blocks of a text tower."""

    embedding: nn.Embedding
    positions: Callable[[], Tensor]  # () -> (context length, d)
    final_norm: nn.Module
    project: Callable[[Tensor], Tensor]  # pooled (n, d) -> features (n, e)


@dataclass(frozen=True)
class VisionParts:
    """The parts around the blocks of a vision tower."""

    embed: Callable[[Tensor], Tensor]  # (b, 3, h, w) -> (b, l, d), before the pre-norm
    read: Callable[[Tensor, Norm], Tensor]  # (b, l, d) and the final norm -> pooled (b, d)
    project: Callable[[Tensor], Tensor]  # pooled (b, d) -> features (b, e)


@dataclass(frozen=True)
class LastProjection:
    """The map from pooled tokens `(n, d)` to features `(n, e)`: a parameter `(d, e)`, or a linear map."""

    owner: nn.Module
    name: str  # of the parameter, or the module, in its owner

    @property
    def weight(self) -> Tensor:
        """The frozen weight `(e, d)`."""
        part = getattr(self.owner, self.name)
        weight: Tensor = part.weight if isinstance(part, nn.Linear) else part.T
        return weight.detach()


NORMS = ("norm1", "norm2")  # of a block, before its attention and before its MLP


@dataclass(frozen=True)
class Tower:
    """One transformer stack of a backbone. Sizes are read from the model."""

    name: str
    width: int
    heads: int
    form: Form
    blocks: tuple[Block, ...]
    text: TextParts | None = None
    vision: VisionParts | None = None
    pre_norm: nn.Module | None = None  # where all tokens enter; without one, they enter at the first block
    final_norm: nn.Module | None = None
    projection: LastProjection | None = None

    @property
    def parts(self) -> dict[str, nn.Module | LastProjection]:
        """The parts outside the blocks, by the names that edits use."""
        named = {"pre_norm": self.pre_norm, "final_norm": self.final_norm, "projection": self.projection}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of its blocks' weights, None if no block is left; embeddings and norms may have a higher."""
        there = (block for block in self.blocks if any(True for _ in block.module.parameters()))  # not cut out
        return next((each.dtype for block in there for each in block.projections.values()), None)

    @property
    def projections(self) -> tuple[str, ...]:
        """The letters that every block of this tower has."""
        return tuple(self.blocks[0].projections)


def check_parts(tower: Tower, model: nn.Module) -> None:
    """Raise AdaptError if a part of `tower` is no longer in `model`: editing it would have no effect."""
    inside = set(model.modules())
    for index, block in enumerate(tower.blocks):
        projections = (projection.module for projection in block.projections.values())
        parts = (block.module, block.attn, block.norm1, block.norm2, block.act, *projections)
        cut_out = not any(True for _ in block.module.parameters())
        if not (cut_out or inside.issuperset(parts)):
            raise AdaptError(
                f"a module in block {index} of the {tower.name} tower was replaced after the backbone was built: build "
                "a backbone of the model as it is now, and wrap that"
            )


def as_one(projections: Sequence[Projection]) -> Projection | None:
    """Return one projection that computes all of these, with their outputs concatenated.

    None unless they are slices of one weight in floating point, each next to the one before.
    """
    first = projections[0]
    if first.quantized or not all(each.module is first.module and isinstance(each.rows, slice) for each in projections):
        return None
    rows = [each.rows for each in projections if isinstance(each.rows, slice)]
    if any(before.stop != after.start for before, after in pairwise(rows)):
        return None
    return replace(first, rows=slice(rows[0].start, rows[-1].stop))


def full_weight(module: nn.Module) -> Tensor:
    """Return the weight `(out, in)` of a linear of bitsandbytes, in full precision."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit) and isinstance(module.weight, bnb.nn.Params4bit):
        full: Tensor = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return full[:, : module.in_features]  # without the padding to full blocks
    assert isinstance(module, bnb.nn.Linear8bitLt)
    assert isinstance(module.weight, bnb.nn.Int8Params)
    scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
    assert scale is not None
    return bnb.functional.int8_vectorwise_dequant(module.weight.data, scale).to(module.int8_original_dtype)


def fused_qkv(
    module: nn.Module, width: int, weight_name: str = "weight", bias_name: str = "bias"
) -> dict[str, Projection]:
    """Return q, k and v as the three thirds of one weight `(3 * width, in)`."""
    rows = fused_rows([width] * 3)
    return {letter: Projection(module, part, weight_name, bias_name) for letter, part in zip("qkv", rows)}


def fused_rows(sizes: Sequence[int]) -> list[slice]:
    """Return the rows of one weight that holds maps of these output widths, one after the other."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends)]
